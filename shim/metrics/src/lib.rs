//! Metrics: families and samples, counters and histograms, their text for Prometheus, and the listener that serves it.
//!
//! ```text
//! code --Counters, Gauges, Histograms--+
//!                                      +--> Text --chunks--> listener --HTTP--> Prometheus
//! gathered per scrape: Family, Value --+
//! ```
//! Called by: crates that count, [`listener`] by the shim's `serve`. Invariants: counting takes no lock and allocates
//! once for each new set of labels; labels of counters are known to the program, so that their number is bounded; text is
//! made family by family, so that a scrape of a full node needs no buffer of its size.
//! Must not know: pods, containers, RPCs. Written here, not taken from a crate: the series of containers are gathered per
//! scrape and served in two forms, which is all but the 100 lines of text that a crate would save.

pub mod listener;
mod numbers;
mod text;

pub use numbers::{BUCKETS, Counters, Gauge, Gauges, Held, Histograms, Metric, Seconds};
pub use text::{Format, Text, push_label};

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values by size.
    Histogram,
}

/// Series of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, with its unit; a counter's ends in `_total` unless others call it otherwise.
    pub name: &'static str,
    /// What it is, one sentence.
    pub help: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number, in the unit of the family's name.
    Whole(u64),
    /// A time, in nanoseconds; shown in seconds.
    Nanoseconds(u64),
    /// Any other number.
    Real(f64),
}

impl Value {
    /// The value in whole units, rounded down: for protocols without fractions.
    #[must_use]
    pub fn whole(self) -> u64 {
        match self {
            Value::Whole(value) => value,
            Value::Nanoseconds(value) => value / 1_000_000_000,
            // Saturates, also for a number that is not one.
            Value::Real(value) => value as u64,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Whole(value) => write!(f, "{value}"),
            Value::Nanoseconds(value) => {
                write!(f, "{}.{:09}", value / 1_000_000_000, value % 1_000_000_000)
            }
            Value::Real(value) => write!(f, "{value}"),
        }
    }
}
