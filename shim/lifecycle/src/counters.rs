//! What is counted of pods and containers, for metrics.
//!
//! Called by: drivers, at changes of phases; the shim, which shows [`all`]. Invariant: labels have few values.
//! Must not know: names of pods.

use std::time::Duration;

use coracle_metrics::{Counters, Family, Histograms, Kind, Metric, Seconds};

use super::config::Handler;
use super::view::ContainerKind;

static SANDBOX_STARTS: Histograms<1> = Histograms::new(Family {
    name: "coracle_sandbox_start_duration_seconds",
    help: "How long it took until a sandbox was ready.",
    kind: Kind::Histogram,
    labels: &["handler"],
});
static CONTAINER_CREATIONS: Histograms<1> = Histograms::new(Family {
    name: "coracle_container_create_duration_seconds",
    help: "How long it took until a container was created.",
    kind: Kind::Histogram,
    labels: &["kind"],
});
static CONTAINER_STARTS: Histograms<1> = Histograms::new(Family {
    name: "coracle_container_start_duration_seconds",
    help: "How long it took from a start to a running container.",
    kind: Kind::Histogram,
    labels: &["kind"],
});
static EXITS: Counters<2> = Counters::new(Family {
    name: "coracle_container_exits_total",
    help: "Containers that ended, by kind and reason.",
    kind: Kind::Counter,
    labels: &["kind", "reason"],
});
static KEEPERS_LOST: Counters<0> = Counters::new(Family {
    name: "coracle_keepers_lost_total",
    help: "Keepers that died while their pods ran, which ended these.",
    kind: Kind::Counter,
    labels: &[],
});

static RECOVERY: Seconds = Seconds::new(Family {
    name: "coracle_recovery_duration_seconds",
    help: "How long the recovery of sandboxes took at the daemon's start.",
    kind: Kind::Gauge,
    labels: &[],
});
static RECOVERED: Counters<1> = Counters::new(Family {
    name: "coracle_recovered_sandboxes",
    help: "Sandboxes that the daemon found on the disk at its start, by what became of them.",
    kind: Kind::Gauge,
    labels: &["outcome"],
});
static SWEPT: Counters<0> = Counters::new(Family {
    name: "coracle_swept_total",
    help: "Objects without an owner that were removed at the daemon's start.",
    kind: Kind::Counter,
    labels: &[],
});

/// Everything that is counted here.
#[must_use]
pub fn all() -> [&'static dyn Metric; 8] {
    KEEPERS_LOST.show([]);
    SWEPT.show([]);
    for outcome in [ADOPTED, DEAD, UNRECOVERED] {
        RECOVERED.show([outcome]);
    }
    [
        &SANDBOX_STARTS,
        &CONTAINER_CREATIONS,
        &CONTAINER_STARTS,
        &EXITS,
        &KEEPERS_LOST,
        &RECOVERY,
        &RECOVERED,
        &SWEPT,
    ]
}

const ADOPTED: &str = "adopted";
const DEAD: &str = "dead";
const UNRECOVERED: &str = "unrecovered";

/// What recovery found: sandboxes that go on, others whose record says that they never were, others that need an operator.
pub(crate) fn recovered(took: Duration, adopted: usize, dead: usize, unrecovered: usize) {
    RECOVERY.set(took);
    for (outcome, count) in [(ADOPTED, adopted), (DEAD, dead), (UNRECOVERED, unrecovered)] {
        RECOVERED.add([outcome], u64::try_from(count).unwrap_or(u64::MAX));
    }
}

pub(crate) fn swept(count: usize) {
    SWEPT.add([], u64::try_from(count).unwrap_or(u64::MAX));
}

pub(crate) fn sandbox_ready(handler: Handler, took: Duration) {
    SANDBOX_STARTS.observe([handler.shown()], took);
}

pub(crate) fn container_created(kind: ContainerKind, took: Duration) {
    CONTAINER_CREATIONS.observe([kind.name()], took);
}

pub(crate) fn container_started(kind: ContainerKind, took: Duration) {
    CONTAINER_STARTS.observe([kind.name()], took);
}

pub(crate) fn container_exited(kind: ContainerKind, reason: &'static str) {
    EXITS.count([kind.name(), reason]);
}

pub(crate) fn keeper_lost() {
    KEEPERS_LOST.count([]);
}
