//! Numbers that the program counts itself, as statics of the code that counts.
//!
//! Called by: whoever counts; [`Metric::write`] by the source of a scrape. Invariants: counting takes no lock, and allocates
//! once for each new set of labels, of which there are few: their values are constants of the program, or bounded by
//! who makes them. A scrape holds up nobody who counts.
//! Must not know: what is counted.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Values by labels: a list that only grows.
#[derive(Debug)]
struct Table<const N: usize, T> {
    family: Family,
    first: Link<N, T>,
}

/// The next entry, once there is one.
type Link<const N: usize, T> = OnceLock<Box<Entry<N, T>>>;

#[derive(Debug)]
struct Entry<const N: usize, T> {
    labels: Labels<N>,
    value: T,
    next: Link<N, T>,
}

impl<const N: usize, T: Default> Table<N, T> {
    const fn new(family: Family) -> Self {
        assert!(family.labels.len() == N);
        Table {
            family,
            first: OnceLock::new(),
        }
    }

    /// The value for `labels`, made if there is none.
    fn of(&self, labels: Labels<N>) -> &T {
        let mut link = &self.first;
        loop {
            let entry = link.get_or_init(|| {
                Box::new(Entry {
                    labels,
                    value: T::default(),
                    next: OnceLock::new(),
                })
            });
            if entry.labels == labels {
                return &entry.value;
            }
            link = &entry.next;
        }
    }

    /// All values, by their labels in order.
    fn all(&self) -> Vec<(&Labels<N>, &T)> {
        let mut all = Vec::new();
        let mut link = &self.first;
        while let Some(entry) = link.get() {
            all.push((&entry.labels, &entry.value));
            link = &entry.next;
        }
        all.sort_by_key(|(labels, _)| **labels);
        all
    }
}

/// Writes a family of plain numbers.
fn write_numbers<const N: usize>(table: &Table<N, AtomicU64>, text: &mut Text) {
    text.family(&table.family);
    for (labels, value) in table.all() {
        let value = Value::Whole(value.load(Ordering::Relaxed));
        text.sample(&table.family, labels, value);
    }
}

/// Counters of one family.
#[derive(Debug)]
pub struct Counters<const N: usize>(Table<N, AtomicU64>);

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
        self.0.of(labels).fetch_add(number, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn value(&self, labels: Labels<N>) -> u64 {
        self.0.of(labels).load(Ordering::Relaxed)
    }

    /// Shows this counter as 0 until it counts.
    pub fn show(&self, labels: Labels<N>) {
        self.0.of(labels);
    }
}

impl<const N: usize> Metric for Counters<N> {
    fn write(&self, text: &mut Text) {
        write_numbers(&self.0, text);
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

    /// The duration that was set last.
    pub fn value(&self) -> Duration {
        Duration::from_nanos(self.0.value.load(Ordering::Relaxed))
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
pub struct Gauges<const N: usize>(Table<N, AtomicU64>);

impl<const N: usize> Gauges<N> {
    /// No gauges yet. `family` has `N` labels.
    #[must_use]
    pub const fn new(family: Family) -> Self {
        Gauges(Table::new(family))
    }

    /// Counts one until the value that it returns is dropped.
    pub fn hold(&'static self, labels: Labels<N>) -> Held {
        let value = self.0.of(labels);
        value.fetch_add(1, Ordering::Relaxed);
        Held(value)
    }

    /// How many are held.
    pub fn value(&self, labels: Labels<N>) -> u64 {
        self.0.of(labels).load(Ordering::Relaxed)
    }

    /// Shows this gauge as 0 until something is held.
    pub fn show(&self, labels: Labels<N>) {
        self.0.of(labels);
    }
}

impl<const N: usize> Metric for Gauges<N> {
    fn write(&self, text: &mut Text) {
        write_numbers(&self.0, text);
    }
}

/// One that a gauge counts.
#[derive(Debug)]
pub struct Held(&'static AtomicU64);

impl Drop for Held {
    fn drop(&mut self) {
        // It was added once, when it was made.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts by bucket, and the sum of what was counted in nanoseconds.
#[derive(Debug, Default)]
struct Durations {
    counts: [AtomicU64; BUCKETS.len()],
    longer: AtomicU64,
    sum_ns: AtomicU64,
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
        let durations = self.0.of(labels);
        let counter = bucket.map_or(&durations.longer, |at| &durations.counts[at]);
        counter.fetch_add(1, Ordering::Relaxed);
        // 584 years of durations fit.
        durations.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl<const N: usize> Metric for Histograms<N> {
    fn write(&self, text: &mut Text) {
        let family = &self.0.family;
        text.family(family);
        for (values, durations) in self.0.all() {
            let mut labels = String::new();
            for (name, value) in family.labels.iter().zip(values) {
                push_label(&mut labels, name, value);
            }
            let bucket_name = format!("{}_bucket", family.name);
            let mut total = 0;
            for (bound, count) in BUCKETS.iter().zip(&durations.counts) {
                total += count.load(Ordering::Relaxed);
                let bound = (*bound as f64 / 1_000_000.0).to_string();
                text.line(&bucket_name, &bounded(&labels, &bound), Value::Whole(total));
            }
            total += durations.longer.load(Ordering::Relaxed);
            text.line(&bucket_name, &bounded(&labels, "+Inf"), Value::Whole(total));
            let sum = Value::Nanoseconds(durations.sum_ns.load(Ordering::Relaxed));
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
    fn threads_that_count_at_a_time_lose_nothing_and_each_set_of_labels_stands_once() {
        static COUNTER: Counters<1> = Counters::new(family(Kind::Counter));
        let labels = ["a", "b", "c", "d"];
        std::thread::scope(|scope| {
            for first in 0..4 {
                scope.spawn(move || {
                    for round in 0..4000 {
                        COUNTER.count([labels[(first + round) % 4]]);
                    }
                });
            }
        });
        let text = written(&COUNTER);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let wanted = labels.map(|label| format!("x_seconds{{of=\"{label}\"}} 4000"));
        assert_eq!(lines, wanted);
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
