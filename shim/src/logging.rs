//! The daemon's own log on standard error: text, or one JSON object a line.
//!
//! Called by: `serve`, before the daemon starts its first thread; its reload; the admin service.
//! Invariants: levels come from the configuration and from the operator's commands, never from the environment; every line
//! has a time in UTC, and its priority where standard error goes to the journal; colours only when standard error is a
//! terminal; the last lines stay in memory; none is longer than 16 KiB.
//! Must not know: logs of containers, which keepers write.

mod bounded;
mod journal;
mod levels;
mod recent;

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use coracle_config::{Log, LogFormat};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use journal::Prefixed;
pub use levels::{Change, configure, set};
use recent::Output;
pub use recent::recent_lines;

/// Changes the filter of the log.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. Errors: it was started before.
pub fn init(log: &Log) -> Result<(), TryInitError> {
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
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()?;
    // Nobody else sets it: `try_init` succeeds once.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Filters by `targets` from now on. Without [`init`] nothing happens.
fn apply(targets: Targets) {
    let Some(handle) = FILTER.get() else { return };
    if let Err(error) = handle.reload(targets) {
        tracing::error!(%error, "the level of the log was not changed");
    }
}
