//! Numbers that the program counts itself, as statics of the code that counts.
//!
//! Called by: whoever counts; [`Metric::write`] by the source of a scrape. Invariants: a lock is held for a few
//! instructions, never while text is made of more than one family; values of labels are constants of the program.
//! Must not know: what is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::text::push_label;
use super::{Family, Text, Value};

/// The upper bounds of a histogram's buckets, in microseconds.
pub const BUCKETS: [u64; 17] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    600_000_000,
];

/// Something that can be shown.
pub trait Metric: Sync {
    /// Writes the family and its samples.
    fn write(&self, text: &mut Text);
}

type Labels<const N: usize> = [&'static str; N];

/// Values by labels.
#[derive(Debug)]
struct Table<const N: usize, T> {
    family: Family,
    values: Mutex<BTreeMap<Labels<N>, T>>,
}

impl<const N: usize, T: Default> Table<N, T> {
    const fn new(family: Family) -> Self {
        assert!(family.labels.len() == N);
        Table {
            family,
            values: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Labels<N>, T>> {
        // A panic while it is locked leaves plain numbers.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, labels: Labels<N>, change: impl FnOnce(&mut T)) {
        change(self.lock().entry(labels).or_default());
    }
}

/// Counters of one family.
#[derive(Debug)]
pub struct Counters<const N: usize>(Table<N, u64>);

impl<const N: usize> Counters<N> {
    /// No counts yet. `family` has `N` labels.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Counters(Table::new(family))
    }

    /// Counts one.
    pub fn count(&self, labels: Labels<N>) {
        self.add(labels, 1);
    }

    /// Counts `number` of them.
    pub fn add(&self, labels: Labels<N>, number: u64) {
        self.0.change(labels, |value| *value += number);
    }

    /// Shows this counter as 0 until it counts.
    pub fn show(&self, labels: Labels<N>) {
        self.0.change(labels, |_| {});
    }
}

impl<const N: usize> Metric for Counters<N> {
    fn write(&self, text: &mut Text) {
        text.family(&self.0.family);
        for (labels, value) in self.0.lock().iter() {
            text.sample(&self.0.family, labels, Value::Whole(*value));
        }
    }
}

/// A gauge without labels that is set.
#[derive(Debug)]
pub struct Gauge {
    family: Family,
    value: AtomicU64,
}

impl Gauge {
    /// 0.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        assert!(family.labels.is_empty());
        Gauge {
            family,
            value: AtomicU64::new(0),
        }
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }
}

impl Metric for Gauge {
    fn write(&self, text: &mut Text) {
        text.family(&self.family);
        let value = Value::Whole(self.value.load(Ordering::Relaxed));
        text.sample(&self.family, &[], value);
    }
}

/// A gauge without labels that is a duration.
#[derive(Debug)]
pub struct Seconds(Gauge);

impl Seconds {
    /// 0.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Seconds(Gauge::new(family))
    }

    /// Sets it.
    pub fn set(&self, took: Duration) {
        self.0
            .set(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Metric for Seconds {
    fn write(&self, text: &mut Text) {
        text.family(&self.0.family);
        let value = Value::Nanoseconds(self.0.value.load(Ordering::Relaxed));
        text.sample(&self.0.family, &[], value);
    }
}

/// Gauges of one family that count what is under way.
#[derive(Debug)]
pub struct Gauges<const N: usize>(Table<N, u64>);

impl<const N: usize> Gauges<N> {
    /// No gauges yet. `family` has `N` labels.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Gauges(Table::new(family))
    }

    /// Counts one until the value that it returns is dropped.
    pub fn hold(&'static self, labels: Labels<N>) -> Held<N> {
        self.0.change(labels, |value| *value += 1);
        Held(self, labels)
    }
}

impl<const N: usize> Metric for Gauges<N> {
    fn write(&self, text: &mut Text) {
        text.family(&self.0.family);
        for (labels, value) in self.0.lock().iter() {
            text.sample(&self.0.family, labels, Value::Whole(*value));
        }
    }
}

/// One that a gauge counts.
#[derive(Debug)]
pub struct Held<const N: usize>(&'static Gauges<N>, Labels<N>);

impl<const N: usize> Drop for Held<N> {
    fn drop(&mut self) {
        self.0
            .0
            .change(self.1, |value| *value = value.saturating_sub(1));
    }
}

/// Counts by bucket, and the sum of what was counted in nanoseconds.
#[derive(Clone, Debug, Default)]
struct Durations {
    counts: [u64; BUCKETS.len()],
    longer: u64,
    sum_ns: u64,
}

/// Histograms of durations.
#[derive(Debug)]
pub struct Histograms<const N: usize>(Table<N, Durations>);

impl<const N: usize> Histograms<N> {
    /// No counts yet. `family` has `N` labels.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Histograms(Table::new(family))
    }

    /// Counts a duration.
    pub fn observe(&self, labels: Labels<N>, took: Duration) {
        let bucket = BUCKETS
            .iter()
            .position(|bound| took <= Duration::from_micros(*bound));
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.change(labels, |durations| {
            match bucket {
                Some(at) => durations.counts[at] += 1,
                None => durations.longer += 1,
            }
            durations.sum_ns = durations.sum_ns.saturating_add(ns);
        });
    }
}

impl<const N: usize> Metric for Histograms<N> {
    fn write(&self, text: &mut Text) {
        let family = &self.0.family;
        text.family(family);
        for (values, durations) in self.0.lock().iter() {
            let mut labels = String::new();
            for (name, value) in family.labels.iter().zip(values) {
                push_label(&mut labels, name, value);
            }
            let bucket_name = format!("{}_bucket", family.name);
            let mut total = 0;
            for (bound, count) in BUCKETS.iter().zip(durations.counts) {
                total += count;
                let bound = (*bound as f64 / 1_000_000.0).to_string();
                text.line(&bucket_name, &bounded(&labels, &bound), Value::Whole(total));
            }
            total += durations.longer;
            text.line(&bucket_name, &bounded(&labels, "+Inf"), Value::Whole(total));
            let sum = Value::Nanoseconds(durations.sum_ns);
            text.line(&format!("{}_sum", family.name), &labels, sum);
            let count = Value::Whole(total);
            text.line(&format!("{}_count", family.name), &labels, count);
        }
    }
}

fn bounded(labels: &str, bound: &str) -> String {
    let mut labels = labels.to_owned();
    push_label(&mut labels, "le", bound);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Kind};

    const fn family(kind: Kind) -> Family {
        Family {
            name: "x_seconds",
            help: "X.",
            kind,
            labels: &["of"],
        }
    }

    fn written(metric: &dyn Metric) -> String {
        let mut text = Text::new(Format::Prometheus);
        metric.write(&mut text);
        text.take()
    }

    #[test]
    fn a_histogram_counts_each_duration_in_every_bucket_that_holds_it() {
        let histogram = Histograms::new(family(Kind::Histogram));
        for ms in [1, 2, 3, 700_000] {
            histogram.observe(["a"], Duration::from_millis(ms));
        }
        let text = written(&histogram);
        for line in [
            "x_seconds_bucket{of=\"a\",le=\"0.001\"} 1",
            "x_seconds_bucket{of=\"a\",le=\"0.0025\"} 2",
            "x_seconds_bucket{of=\"a\",le=\"0.005\"} 3",
            "x_seconds_bucket{of=\"a\",le=\"600\"} 3",
            "x_seconds_bucket{of=\"a\",le=\"+Inf\"} 4",
            "x_seconds_sum{of=\"a\"} 700.006000000",
            "x_seconds_count{of=\"a\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        static GAUGE: Gauges<1> = Gauges::new(family(Kind::Gauge));
        let (one, two) = (GAUGE.hold(["a"]), GAUGE.hold(["a"]));
        assert!(written(&GAUGE).ends_with("x_seconds{of=\"a\"} 2\n"));
        drop(one);
        assert!(written(&GAUGE).ends_with("x_seconds{of=\"a\"} 1\n"));
        drop(two);
        assert!(written(&GAUGE).ends_with("x_seconds{of=\"a\"} 0\n"));
        let counter = Counters::new(family(Kind::Counter));
        counter.show(["a"]);
        assert!(written(&counter).ends_with("x_seconds{of=\"a\"} 0\n"));
        counter.count(["a"]);
        assert!(written(&counter).ends_with("x_seconds{of=\"a\"} 1\n"));
    }
}
