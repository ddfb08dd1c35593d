//! What is counted of pods and containers, for metrics.
//!
//! Called by: drivers, at changes of phases; hosts, for the steps of a start; the shim, which shows [`all`]. Invariant: labels
//! have few values.
//! Must not know: names of pods.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use coracle_metrics::{Counters, Family, Gauges, Held, Histograms, Kind, Metric, Seconds};

use super::config::Handler;
use super::view::ContainerKind;

static SANDBOX_STARTS: Histograms<2> = Histograms::new(Family {
    name: "coracle_sandbox_start_duration_seconds",
    help: "How long it took until a sandbox was ready, in all and by step.",
    kind: Kind::Histogram,
    labels: &["phase", "handler"],
});
static CONTAINER_CREATIONS: Histograms<1> = Histograms::new(Family {
    name: "coracle_container_create_duration_seconds",
    help: "How long it took until a container was created.",
    kind: Kind::Histogram,
    labels: &["kind"],
});
static CONTAINER_STARTS: Histograms<2> = Histograms::new(Family {
    name: "coracle_container_start_duration_seconds",
    help: "How long it took from a start to a running container, in all and by step.",
    kind: Kind::Histogram,
    labels: &["phase", "kind"],
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
static KEEPERS: Gauges<1> = Gauges::new(Family {
    name: "coracle_keepers",
    help: "Keepers that live, by whether they run this daemon's executable or that of another build.",
    kind: Kind::Gauge,
    labels: &["build"],
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
pub fn all() -> [&'static dyn Metric; 9] {
    KEEPERS_LOST.show([]);
    KEEPERS.show([OWN]);
    KEEPERS.show([OLDER]);
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
        &KEEPERS,
        &RECOVERY,
        &RECOVERED,
        &SWEPT,
    ]
}

/// What the last start of the daemon found, and the keepers that live; for an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Keepers that run this daemon's executable.
    pub own_keepers: u64,
    /// Keepers that run another build's.
    pub older_keepers: u64,
    /// Sandboxes that were found and go on, or are stopped.
    pub adopted: u64,
    /// Sandboxes that were found and never were whole.
    pub dead: u64,
    /// How long it took to find out.
    pub recovery: Duration,
}

/// The numbers as they are now.
#[must_use]
pub fn processes() -> Processes {
    Processes {
        own_keepers: KEEPERS.value([OWN]),
        older_keepers: KEEPERS.value([OLDER]),
        adopted: RECOVERED.value([ADOPTED]),
        dead: RECOVERED.value([DEAD]),
        recovery: RECOVERY.value(),
    }
}

const OWN: &str = "own";
const OLDER: &str = "older";
/// The phase of a start that is all of it.
const TOTAL: &str = "total";
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
    SANDBOX_STARTS.observe([TOTAL, handler.shown()], took);
}

pub(crate) fn container_created(kind: ContainerKind, took: Duration) {
    CONTAINER_CREATIONS.observe([kind.name()], took);
}

pub(crate) fn container_started(kind: ContainerKind, took: Duration) {
    CONTAINER_STARTS.observe([TOTAL, kind.name()], took);
}

pub(crate) fn container_exited(kind: ContainerKind, reason: &'static str) {
    EXITS.count([kind.name(), reason]);
}

/// A sandbox of `handler` has its network: namespaces, addresses, routes; what plugins do counts, too.
pub fn sandbox_connected(handler: Handler, took: Duration) {
    SANDBOX_STARTS.observe(["network", handler.shown()], took);
}

/// A sandbox of `handler` has a keeper that answers.
pub fn keeper_started(handler: Handler, took: Duration) {
    SANDBOX_STARTS.observe(["keeper", handler.shown()], took);
}

/// Everything that a container's process needs is there: log, compiled code or filter.
pub fn container_prepared(kind: ContainerKind, took: Duration) {
    CONTAINER_STARTS.observe(["prepare", kind.name()], took);
}

/// The keeper has started a container's process, which has entered its sandbox.
pub fn container_spawned(kind: ContainerKind, took: Duration) {
    CONTAINER_STARTS.observe(["spawn", kind.name()], took);
}

/// Counts the keeper with this pid until the value is dropped.
pub(crate) fn keeper(pid: i32) -> Held {
    let own = executable(Path::new("/proc/self/exe"));
    let is_own = own.is_some() && own == executable(Path::new(&format!("/proc/{pid}/exe")));
    KEEPERS.hold([if is_own { OWN } else { OLDER }])
}

/// Which file this is, whatever its name is by now.
fn executable(link: &Path) -> Option<(u64, u64)> {
    let file = std::fs::metadata(link).ok()?;
    Some((file.dev(), file.ino()))
}

pub(crate) fn keeper_lost() {
    KEEPERS_LOST.count([]);
}

#[cfg(test)]
mod tests {
    use coracle_metrics::{Format, Text};

    use super::*;

    #[test]
    fn a_keeper_of_another_executable_is_of_another_build_and_one_that_is_gone_is_not_counted() {
        let shown = || {
            let mut text = Text::new(Format::Prometheus);
            KEEPERS.write(&mut text);
            text.take()
        };
        let of = |build: &str, text: &str| {
            let line = format!("coracle_keepers{{build=\"{build}\"}} ");
            let value = text.lines().find_map(|found| found.strip_prefix(&line));
            value
                .and_then(|value| value.parse::<i64>().ok())
                .unwrap_or(0)
        };
        let before = shown();
        let more = |build| of(build, &shown()) - of(build, &before);
        let own = keeper(rustix::process::getpid().as_raw_pid());
        // The first process of the node, or of the tests' container.
        let other = keeper(1);
        assert_eq!((more(OWN), more(OLDER)), (1, 1));
        drop((own, other));
        assert_eq!((more(OWN), more(OLDER)), (0, 0));
    }
}
