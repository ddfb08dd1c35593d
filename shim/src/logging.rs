//! The daemon's own log on standard error: text, or one JSON object a line.
//!
//! Called by: `serve`, before the daemon starts its first thread; its reload; the admin service.
//! Invariants: levels come from the configuration and from the operator's commands, never from the environment; every line
//! has a time in UTC, and its priority where standard error goes to the journal; colours only when standard error is a
//! terminal; the last lines stay in memory; none is longer than 16 KiB; nobody waits for whoever reads standard error.
//! Must not know: logs of containers, which keepers write.

mod bounded;
mod journal;
mod levels;
mod queue;
mod recent;

use std::error::Error;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use coracle_config::{Log, LogFormat, Tracing};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use journal::Prefixed;
pub use levels::{Change, configure, set};
pub use queue::{flush, last_words, write_in_background};
use recent::Output;
pub use recent::recent_lines;

use crate::traces::{self, Traces};

/// Changes the filter of the log.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging, and the recording of traces if the configuration names a collector. Errors: the collector cannot be used;
/// it was started before.
pub fn init(log: &Log, tracing: &Tracing) -> Result<Option<Traces>, Box<dyn Error>> {
    let collector = tracing.collector.as_ref().map(traces::collector);
    let collector = collector.transpose()?;
    let with_priority = journal::is_standard_error();
    let lines = match log.format {
        LogFormat::Text => fmt::layer()
            .with_writer(|| Output)
            .with_ansi(io::stderr().is_terminal())
            .map_event_format(|format| Prefixed::new(format, with_priority))
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(|| Output)
            .map_event_format(|format| Prefixed::new(format, with_priority))
            .boxed(),
    };
    let (filter, handle) = reload::Layer::new(levels::begin(log));
    let lines = tracing_subscriber::registry().with(lines.with_filter(filter));
    let traces = match collector {
        None => {
            lines.try_init()?;
            None
        }
        Some(collector) => {
            let (spans, exporter) = coracle_trace::layer(tracing.samples_per_million);
            lines.with(spans).try_init()?;
            Some(Traces {
                exporter,
                collector,
            })
        }
    };
    // Nobody else sets it: `try_init` succeeds once.
    let _ = FILTER.set(handle);
    Ok(traces)
}

/// Filters by `targets` from now on. Without [`init`] nothing happens.
fn apply(targets: Targets) {
    let Some(handle) = FILTER.get() else { return };
    if let Err(error) = handle.reload(targets) {
        tracing::error!(%error, "the level of the log was not changed");
    }
}
