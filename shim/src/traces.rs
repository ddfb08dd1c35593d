//! Connects traces with the collector that the configuration names.
//!
//! Called by: the log's setup, once; `check`. Invariant: without a collector nothing is made.
//! Must not know: spans.

use std::error::Error;

use coracle_config::TraceCollector;
use coracle_trace::{Collector, Exporter};

/// The collector of traces. Errors: the file of its authorities cannot be read, or not be used.
pub fn collector(config: &TraceCollector) -> Result<Collector, Box<dyn Error>> {
    let ca = config.ca.as_ref().map(|path| {
        let read = std::fs::read(path);
        read.map_err(|error| format!("read tracing.ca {}: {error}", path.display()))
    });
    let ca = ca.transpose()?;
    Ok(Collector::new(&config.endpoint, ca.as_deref())?)
}

/// Spans that are recorded, and who gets them.
pub struct Traces {
    /// The spans.
    pub exporter: Exporter,
    /// Who gets them.
    pub collector: Collector,
}

impl Traces {
    /// Sends spans as long as the daemon runs.
    pub async fn run(self) {
        self.exporter
            .run(self.collector, env!("CARGO_PKG_VERSION"))
            .await;
    }
}
