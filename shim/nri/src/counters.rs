//! What is counted of plugins, for metrics.
//!
//! Called by: sessions; the shim, which shows [`all`]. Invariant: labels are names of calls
//! and of a bounded number of plugins. Must not know: what calls mean.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coracle_metrics::{Counters, Family, Gauge, Histograms, Kind, Metric};

/// Plugins that have a label of their own.
const MAX_NAMES: usize = 16;
/// Longest name that is a label. Bytes.
const MAX_NAME: usize = 64;
/// The label of all others.
const OTHERS: &str = "others";

static CALLS: Counters<3> = Counters::new(Family {
    name: "coracle_nri_requests_total",
    help: "Requests to NRI plugins, by plugin, method and result.",
    kind: Kind::Counter,
    labels: &["plugin", "method", "result"],
});
static DURATIONS: Histograms<2> = Histograms::new(Family {
    name: "coracle_nri_request_duration_seconds",
    help: "How long NRI plugins took for a request.",
    kind: Kind::Histogram,
    labels: &["plugin", "method"],
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
pub fn all() -> [&'static dyn Metric; 4] {
    CLOSED.show([]);
    [&CALLS, &DURATIONS, &PLUGINS, &CLOSED]
}

/// A plugin, named by [`label`], has answered or not.
pub(crate) fn called(
    plugin: &'static str,
    method: &'static str,
    result: &'static str,
    took: Duration,
) {
    CALLS.count([plugin, method, result]);
    DURATIONS.observe([plugin, method], took);
}

/// The name of a plugin as a label, without its index. Names are kept for ever, so that only the first ones are: plugins
/// that come after them share one label.
pub(crate) fn label(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // A panic while it is locked leaves whole names.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&known) = names.get(name) {
        return known;
    }
    if names.len() >= MAX_NAMES || name.len() > MAX_NAME {
        return OTHERS;
    }
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(name);
    name
}

pub(crate) fn connected(plugins: usize) {
    PLUGINS.set(plugins as u64);
}

pub(crate) fn closed() {
    CLOSED.count([]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_with_ever_new_names_share_a_label() {
        let labels: BTreeSet<&str> = (0..1000)
            .map(|number| label(&format!("plugin-{number}")))
            .collect();
        assert!(labels.len() <= MAX_NAMES + 1, "{labels:?}");
        assert!(labels.contains(OTHERS));
        assert_eq!(label(&"x".repeat(MAX_NAME + 1)), OTHERS);
    }
}
