//! The daemon's own log on standard error: text, or one JSON object a line.
//!
//! Called by: `serve`, before the daemon starts its first thread, and by its reload.
//! Invariants: the level comes from the configuration, never from the environment; every line has a time in UTC;
//! colours only when standard error is a terminal.
//! Must not know: logs of containers, which keepers write.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use coracle_config::{Log, LogFormat, LogLevel};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Changes the filter of the log.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. Errors: it was started before.
pub fn init(log: &Log) -> Result<(), TryInitError> {
    let lines = match log.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(log.level));
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()?;
    // Nobody else sets it: `try_init` succeeds once.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Logs from `level` on from now on. Without [`init`] nothing happens.
pub fn set_level(level: LogLevel) {
    let Some(handle) = FILTER.get() else { return };
    if let Err(error) = handle.reload(filter(level)) {
        tracing::error!(%error, "the level of the log was not changed");
    }
}

/// Our own lines from `level` on. Libraries from `warn` on, except at the lowest level: operators do not need the
/// details of an HTTP library.
fn filter(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        _ => own.min(LevelFilter::WARN),
    };
    Targets::new()
        .with_default(others)
        .with_target("coracle", own)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_log_less_than_the_daemon() {
        let info = filter(LogLevel::Info);
        assert!(info.would_enable("coracle_runtime::keeper", &Level::INFO));
        assert!(!info.would_enable("coracle_runtime::keeper", &Level::DEBUG));
        assert!(!info.would_enable("h2::codec", &Level::INFO));
        assert!(info.would_enable("h2::codec", &Level::WARN));
        assert!(!filter(LogLevel::Error).would_enable("h2::codec", &Level::WARN));
        assert!(filter(LogLevel::Trace).would_enable("h2::codec", &Level::TRACE));
    }
}
