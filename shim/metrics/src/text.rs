//! The text of metrics. Sources: Prometheus' exposition formats, text 0.0.4; OpenMetrics 1.0.
//!
//! Called by: [`super::listener`]'s sources, family by family. Invariants: values of labels are escaped, so that no name of a
//! pod can forge a line; a family's lines stand together.
//! Must not know: where numbers come from.

use std::fmt::Write as _;

use super::{Family, Kind, Value};

/// The form of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The best form for a client that sent this `Accept`.
    #[must_use]
    pub fn accepted(accept: &str) -> Format {
        let takes = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next() == Some("application/openmetrics-text");
            let mut versions = parts.filter_map(|part| part.strip_prefix("version="));
            is_it && versions.next().is_none_or(|version| version == "1.0.0")
        };
        if accept.split(',').any(|range| takes(range.trim())) {
            Format::OpenMetrics
        } else {
            Format::Prometheus
        }
    }

    /// The `Content-Type` of the text.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Text that is being written.
#[derive(Debug)]
pub struct Text {
    format: Format,
    lines: String,
}

impl Text {
    /// No text yet.
    #[must_use]
    pub fn new(format: Format) -> Text {
        Text {
            format,
            lines: String::new(),
        }
    }

    /// Begins the lines of a family. It must be called once for each, before its samples.
    pub fn family(&mut self, family: &Family) {
        let suffixed = family.name.strip_suffix("_total");
        let (name, kind) = match (self.format, family.kind, suffixed) {
            (Format::OpenMetrics, Kind::Counter, Some(name)) => (name, "counter"),
            // OpenMetrics has no counter without the suffix.
            (Format::OpenMetrics, Kind::Counter, None) => (family.name, "unknown"),
            (Format::Prometheus, Kind::Counter, _) => (family.name, "counter"),
            (_, Kind::Gauge, _) => (family.name, "gauge"),
            (_, Kind::Histogram, _) => (family.name, "histogram"),
        };
        let help = family.help;
        // Writing to a string does not fail, here and below.
        let _ = write!(self.lines, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample of the family that was begun last; `values` are those of its labels, in their order.
    pub fn sample(&mut self, family: &Family, values: &[&str], value: Value) {
        let mut labels = String::new();
        for (name, value) in family.labels.iter().zip(values) {
            push_label(&mut labels, name, value);
        }
        self.line(family.name, &labels, value);
    }

    /// The same, with labels that [`push_label`] has written already.
    pub fn line(&mut self, name: &str, labels: &str, value: Value) {
        let _ = match labels {
            "" => writeln!(self.lines, "{name} {value}"),
            _ => writeln!(self.lines, "{name}{{{labels}}} {value}"),
        };
    }

    /// Ends the text. OpenMetrics has a mark for it, so that a text that was cut is seen.
    pub fn end(&mut self) {
        if self.format == Format::OpenMetrics {
            self.lines.push_str("# EOF\n");
        }
    }

    /// Takes the lines that were written since the last time.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.lines)
    }
}

/// Appends `name="value"` to `labels`.
pub fn push_label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    let _ = write!(labels, "{name}=\"");
    for character in value.chars() {
        match character {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            other => labels.push(other),
        }
    }
    labels.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family {
        name: "cpu_seconds_total",
        help: "CPU time.",
        kind: Kind::Counter,
        labels: &["pod", "cpu"],
    };

    #[test]
    fn labels_cannot_forge_lines() {
        let mut text = Text::new(Format::Prometheus);
        text.family(&COUNTER);
        text.sample(
            &COUNTER,
            &["a\"} 1\nb\\", "total"],
            Value::Nanoseconds(1_500_000_000),
        );
        let want = "# HELP cpu_seconds_total CPU time.\n# TYPE cpu_seconds_total counter\n\
             cpu_seconds_total{pod=\"a\\\"} 1\\nb\\\\\",cpu=\"total\"} 1.500000000\n";
        assert_eq!(text.take(), want);
        assert_eq!(text.take(), "");
    }

    #[test]
    fn openmetrics_names_counters_without_their_suffix_and_ends() {
        let mut text = Text::new(Format::OpenMetrics);
        text.family(&COUNTER);
        text.sample(&COUNTER, &["a", "b"], Value::Whole(7));
        let odd = Family {
            name: "failcnt",
            labels: &[],
            ..COUNTER
        };
        text.family(&odd);
        text.sample(&odd, &[], Value::Real(0.5));
        text.end();
        let want = "# HELP cpu_seconds CPU time.\n# TYPE cpu_seconds counter\n\
             cpu_seconds_total{pod=\"a\",cpu=\"b\"} 7\n\
             # HELP failcnt CPU time.\n# TYPE failcnt unknown\nfailcnt 0.5\n# EOF\n";
        assert_eq!(text.take(), want);
    }

    #[test]
    fn clients_get_the_form_that_they_accept() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=0.0.1",
                Format::Prometheus,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn whole_units_are_rounded_down() {
        assert_eq!(Value::Nanoseconds(1_999_999_999).whole(), 1);
        assert_eq!(Value::Real(-1.0).whole(), 0);
        assert_eq!(Value::Whole(u64::MAX).whole(), u64::MAX);
    }
}
