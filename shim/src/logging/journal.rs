//! The priority of each line, where standard error goes to the journal. Sources: sd-daemon(3), systemd.exec(5),
//! `JOURNAL_STREAM`.
//!
//! Called by: [`super::init`]. Invariant: elsewhere lines are as they are without this module.
//! Must not know: levels that are filtered.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether standard error goes to the journal.
pub(super) fn is_standard_error() -> bool {
    let variable = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let file = rustix::fs::fstat(std::io::stderr());
    file.is_ok_and(|file| is_stream(&variable, file.st_dev, file.st_ino))
}

/// Whether `variable`, `DEVICE:INODE`, is about this file: a process that redirected its output has the variable as well.
fn is_stream(variable: &str, device: u64, inode: u64) -> bool {
    let named = variable.split_once(':');
    named.is_some_and(|(named_device, named_inode)| {
        named_device.parse() == Ok(device) && named_inode.parse() == Ok(inode)
    })
}

/// Begins each line of an event with its priority.
pub(super) struct Prefixed<F> {
    format: F,
    with_priority: bool,
}

impl<F> Prefixed<F> {
    pub(super) fn new(format: F, with_priority: bool) -> Self {
        Self {
            format,
            with_priority,
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Prefixed<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.with_priority {
            return self.format.format_event(context, writer, event);
        }
        let mut text = String::new();
        let into = Writer::new(&mut text);
        self.format.format_event(context, into, event)?;
        let priority = priority(*event.metadata().level());
        text.lines()
            .try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// Source: syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_the_variable_names_is_the_journal() {
        assert!(is_stream("8:4711", 8, 4711));
        for variable in [
            "", "8", "8:", ":4711", "8:4712", "9:4711", "8:4711:1", "x:y",
        ] {
            assert!(!is_stream(variable, 8, 4711), "{variable}");
        }
    }
}
