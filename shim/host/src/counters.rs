//! What is counted of networks and compilations, for metrics.
//!
//! Called by: the effects on pods; the CNI networks and the compile cache, which report each operation; the shim, which shows
//! [`all`]. Invariant: labels are names of operations. Must not know: pods, plugins, modules.

use std::time::Duration;

use coracle_metrics::{Counters, Family, Histograms, Kind, Metric};
use coracle_network::Attachment;
use coracle_network::cni::Verb;

use super::Host;

static OPERATIONS: Counters<3> = Counters::new(Family {
    name: "coracle_network_operations_total",
    help: "Operations on networks of pods, by what carried them out and result.",
    kind: Kind::Counter,
    labels: &["op", "provider", "result"],
});
static DURATIONS: Histograms<2> = Histograms::new(Family {
    name: "coracle_network_operation_duration_seconds",
    help: "How long operations on networks of pods took, those that failed included.",
    kind: Kind::Histogram,
    labels: &["op", "provider"],
});

static COMPILATIONS: Histograms<1> = Histograms::new(Family {
    name: "coracle_compilation_duration_seconds",
    help: "How long compilations of modules took, with their wait for a place, by result.",
    kind: Kind::Histogram,
    labels: &["result"],
});

/// Everything that is counted here.
#[must_use]
pub fn all() -> [&'static dyn Metric; 3] {
    [&OPERATIONS, &DURATIONS, &COMPILATIONS]
}

/// A compilation has ended.
pub(crate) fn compiled(result: &'static str, took: Duration) {
    COMPILATIONS.observe([result], took);
}

/// The built-in network has carried out an operation.
pub(crate) fn builtin(op: &'static str, took: Duration, is_ok: bool) {
    count(op, "builtin", took, is_ok);
}

/// The plugins of a network have carried out an operation, all of them or those up to the first that failed.
pub(crate) fn cni(verb: Verb, took: Duration, is_ok: bool) {
    let op = match verb {
        Verb::Add => "add",
        Verb::Del => "del",
        Verb::Check => "check",
        Verb::Status => "status",
        Verb::Gc => "gc",
    };
    count(op, "cni", took, is_ok);
}

fn count(op: &'static str, provider: &'static str, took: Duration, is_ok: bool) {
    let result = if is_ok { "ok" } else { "failed" };
    OPERATIONS.count([op, provider, result]);
    DURATIONS.observe([op, provider], took);
}

impl Host {
    /// Detaches a pod from the built-in network; no effect for one that plugins attached.
    pub(crate) fn detach_builtin(
        &self,
        attachment: &Attachment,
    ) -> Result<(), coracle_network::Error> {
        let began = std::time::Instant::now();
        let detached = self.parts.network.detach(attachment);
        if attachment.provider == coracle_network::Provider::Builtin {
            builtin("del", began.elapsed(), detached.is_ok());
        }
        detached
    }
}
