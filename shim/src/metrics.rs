//! Puts the metrics together: what is measured, what the crates count, and the listener that serves it.
//!
//! Called by `serve`, once. Invariant: without an address nothing listens, but the kubelet can still read metrics by CRI.
//! Must not know: any metric.

use std::error::Error;
use std::sync::Arc;

use coracle_config::Config;
use coracle_images::Images;
use coracle_lifecycle::Pods;
use coracle_metrics::listener::Listener;
use coracle_telemetry::{Build, Collector, Daemon, Scrapes};

/// What is measured and counted, and the listener that serves it.
pub struct Metrics {
    /// The series of containers.
    pub containers: Arc<Collector>,
    /// The daemon's own.
    pub daemon: Daemon,
    /// `None` without an address in the configuration.
    pub listener: Option<Listener>,
}

/// Starts the listener, if the configuration has an address. Errors: the address cannot be used.
pub async fn start(
    config: &Config,
    pods: &Pods,
    images: &Images,
) -> Result<Metrics, Box<dyn Error>> {
    let root = config.root.clone();
    let collector = Collector::new(pods.clone(), root, config.metrics.processes);
    let containers = Arc::new(collector);
    let counted = coracle_cri::calls::all().into_iter();
    let counted = counted.chain(crate::reload::metrics());
    let daemon = Daemon {
        build: Build {
            version: env!("CARGO_PKG_VERSION"),
            wasmtime: crate::version::WASMTIME,
        },
        pods: pods.clone(),
        images: images.clone(),
        counted: counted
            .chain(coracle_lifecycle::counters::all())
            .chain(coracle_nri::metrics())
            .collect(),
    };
    let mut listener = None;
    if let Some(address) = config.metrics.address {
        let source = Scrapes {
            containers: Arc::clone(&containers),
            daemon: daemon.clone(),
        };
        let bound = Listener::bind(address, Arc::new(source)).await?;
        tracing::info!(address = %bound.address, "serving metrics");
        listener = Some(bound);
    }
    Ok(Metrics {
        containers,
        daemon,
        listener,
    })
}
