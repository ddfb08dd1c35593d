//! Where the daemon's own log goes: standard error, as text or as one JSON object a line.
//!
//! Place in the flow: `main` calls [`init`] once, before the first thread of the daemon.
//! Invariants: the level comes from the configuration, never from the environment; a time is in every
//! line, in UTC; colours only when standard error is a terminal.
//! Not here: containers' logs, which keepers write.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging; the error is that it has been started before.
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
    tracing_subscriber::registry()
        .with(lines.with_filter(filter(log.level)))
        .try_init()
}

/// Our own lines from `level` on. Libraries speak from `warn` on, unless everything is asked for: what
/// an HTTP library does is news to nobody who runs a node.
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
    fn libraries_are_quieter_than_we_are() {
        let info = filter(LogLevel::Info);
        assert!(info.would_enable("coracle_runtime::keeper", &Level::INFO));
        assert!(!info.would_enable("coracle_runtime::keeper", &Level::DEBUG));
        assert!(!info.would_enable("h2::codec", &Level::INFO));
        assert!(info.would_enable("h2::codec", &Level::WARN));
        assert!(!filter(LogLevel::Error).would_enable("h2::codec", &Level::WARN));
        assert!(filter(LogLevel::Trace).would_enable("h2::codec", &Level::TRACE));
    }
}
