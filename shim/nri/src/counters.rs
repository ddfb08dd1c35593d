//! What is counted of plugins, for metrics.
//!
//! Called by: sessions; the shim, which shows [`all`]. Invariant: labels are names of calls. Must not know: plugins.

use std::time::Duration;

use coracle_metrics::{Counters, Family, Gauge, Histograms, Kind, Metric};

static CALLS: Histograms<1> = Histograms::new(Family {
    name: "coracle_nri_request_duration_seconds",
    help: "How long NRI plugins took for a request.",
    kind: Kind::Histogram,
    labels: &["method"],
});
static PLUGINS: Gauge = Gauge::new(Family {
    name: "coracle_nri_plugins",
    help: "NRI plugins that are connected.",
    kind: Kind::Gauge,
    labels: &[],
});
static CLOSED: Counters<0> = Counters::new(Family {
    name: "coracle_nri_plugins_closed_total",
    help: "NRI plugins whose connection ended, by themselves or because they hung or broke the protocol.",
    kind: Kind::Counter,
    labels: &[],
});

/// Everything that is counted here.
#[must_use]
pub fn all() -> [&'static dyn Metric; 3] {
    CLOSED.show([]);
    [&CALLS, &PLUGINS, &CLOSED]
}

pub(crate) fn called(method: &'static str, took: Duration) {
    CALLS.observe([method], took);
}

pub(crate) fn connected(plugins: usize) {
    PLUGINS.set(plugins as u64);
}

pub(crate) fn closed() {
    CLOSED.count([]);
}
