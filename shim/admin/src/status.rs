//! The state of the whole node in one reply.
//!
//! Called by: [`super::server`]. Calls: snapshots in memory; a look at the file system. Invariants: what keeps pods from
//! running comes first, and makes the node not ready; what only deserves a look does not; a disk that hangs delays the reply by
//! [`DISK_PATIENCE`], and nobody else.
//! Must not know: the form in which it is printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_lifecycle::{ContainerKind, Pods, counters};
use coracle_proto::admin::v1 as admin;
use tokio::sync::Semaphore;

use super::listing::state_name;
use super::server::{Facts, View};

/// Free space below which the node deserves a look, in bytes.
const LITTLE_SPACE: u64 = 1 << 30;

/// Fewer free addresses than one in so many deserve a look.
const FEW_ADDRESSES: u64 = 20;

/// How long the disk may take to answer.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// The reply; the daemon has run for `uptime`.
pub(crate) async fn status(parts: &View, uptime: Duration) -> admin::StatusReply {
    let facts = &parts.facts;
    let network = parts.pods.network_problem().await;
    let ready = network.is_none();
    let store = parts.images.fs_info();
    let disk = look(store.mountpoint.clone(), quarantines(facts)).await;
    let Disk { free, quarantined } = disk.unwrap_or_default();
    let quarantined = quarantined.iter().sum();
    let shown = |path: &Path| path.display().to_string();
    let counted = counted(&parts.pods);
    let mut problems = problems(facts, network, disk);
    problems.extend(addresses_short(
        counted.used_addresses,
        counted.free_addresses,
    ));
    admin::StatusReply {
        ready,
        problems,
        version: facts.version.clone(),
        wasmtime: facts.wasmtime.clone(),
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        uptime_s: uptime.as_secs(),
        root: shown(&facts.root),
        run: shown(&facts.run),
        socket: shown(&facts.socket),
        metrics_address: facts.metrics_address.clone(),
        cgroup_driver: facts.cgroup_driver.clone(),
        cgroup_version: facts.cgroup_version,
        network_mode: parts.pods.network_mode(),
        sandboxes: sandboxes(parts),
        containers: containers(parts),
        images: u64::try_from(parts.images.list().len()).unwrap_or(u64::MAX),
        store_bytes: store.used_bytes,
        store_free_bytes: free.unwrap_or(u64::MAX),
        resident_bytes: resident_bytes(),
        quarantined,
        ..counted
    }
}

/// What the daemon counts anyway; nothing else is said.
fn counted(pods: &Pods) -> admin::StatusReply {
    let (counts, processes) = (pods.counts(), counters::processes());
    admin::StatusReply {
        own_keepers: processes.own_keepers,
        older_keepers: processes.older_keepers,
        used_addresses: counts.network.used,
        free_addresses: counts.network.free,
        owed_releases: counts.owed_releases,
        compiled_bytes: counts.compiled_bytes,
        compiled_files: counts.compiled_files,
        adopted_sandboxes: processes.adopted,
        dead_sandboxes: processes.dead,
        recovery_ms: u64::try_from(processes.recovery.as_millis()).unwrap_or(u64::MAX),
        spawner_restarts: counts.spawner_restarts,
        ..Default::default()
    }
}

/// Says that the built-in network has nearly no address left.
fn addresses_short(used: u64, free: u64) -> Option<String> {
    let is_short = free < (used + free) / FEW_ADDRESSES;
    is_short.then(|| {
        format!(
            "{free} of {} addresses of network.subnet are free",
            used + free
        )
    })
}

/// What the disk says of itself.
#[derive(Clone, Copy, Default)]
struct Disk {
    /// Free bytes, if that is known.
    free: Option<u64>,
    /// Damaged records that were put aside, in each of the [`quarantines`].
    quarantined: [u64; 2],
}

/// The directories for damaged records; the second is used where pods are on another filesystem.
fn quarantines(facts: &Facts) -> [PathBuf; 2] {
    ["quarantine", "pods/quarantine"].map(|place| facts.root.join(place))
}

/// Looks at the disk; `None` if it does not answer. One look at a time, on a thread that may wait: however many ask, a disk
/// that hangs holds no other.
async fn look(store: PathBuf, quarantines: [PathBuf; 2]) -> Option<Disk> {
    static LOOKS: Semaphore = Semaphore::const_new(1);
    let looking = async {
        // The semaphore is never closed.
        let turn = LOOKS.acquire().await.ok()?;
        let look = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            Disk {
                free: free_bytes(&store),
                quarantined: quarantines.map(|place| count_entries(&place)),
            }
        });
        look.await.ok()
    };
    tokio::time::timeout(DISK_PATIENCE, looking).await.ok()?
}

/// The problems of the node: of its `network`, if it has one, and of its `disk`, if that answers.
fn problems(facts: &Facts, network: Option<String>, disk: Option<Disk>) -> Vec<String> {
    let mut problems: Vec<String> = network
        .map(|why| format!("no network for new pods: {why}"))
        .into_iter()
        .collect();
    let place = facts.root.display();
    let Some(Disk { free, quarantined }) = disk else {
        problems.push(format!("the disk of {place} does not answer"));
        problems.extend(facts.warnings.iter().cloned());
        return problems;
    };
    if let Some(free) = free.filter(|free| *free < LITTLE_SPACE) {
        problems.push(format!("only {} MiB are free in {place}", free >> 20));
    }
    for (place, count) in quarantines(facts).iter().zip(quarantined) {
        if count > 0 {
            let place = place.display();
            problems.push(format!("{count} damaged records lie in {place}"));
        }
    }
    problems.extend(facts.warnings.iter().cloned());
    problems
}

fn sandboxes(parts: &View) -> Vec<admin::Count> {
    let pods = parts.pods.pods();
    counts(pods.iter().map(|pod| {
        let state = if pod.ready { "ready" } else { "notready" };
        (state, pod.config.handler.shown())
    }))
}

fn containers(parts: &View) -> Vec<admin::Count> {
    let containers = parts.pods.containers();
    counts(containers.iter().map(|container| {
        let kind = parts.pods.container_kind(&container.id);
        let kind = kind.map_or("unknown", ContainerKind::name);
        (state_name(container.state), kind)
    }))
}

fn counts(all: impl Iterator<Item = (&'static str, &'static str)>) -> Vec<admin::Count> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for labels in all {
        *counts.entry(labels).or_default() += 1;
    }
    let count = |((state, kind), count): ((&str, &str), u64)| admin::Count {
        state: state.to_owned(),
        kind: kind.to_owned(),
        count,
    };
    counts.into_iter().map(count).collect()
}

fn free_bytes(path: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(path).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

fn count_entries(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory);
    entries.map_or(0, |entries| {
        u64::try_from(entries.count()).unwrap_or(u64::MAX)
    })
}

/// Source: proc(5), `/proc/PID/statm`: the second number is in pages.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    pages.unwrap_or(0) * page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_run_short_deserve_a_look() {
        assert_eq!(addresses_short(0, 254), None);
        assert_eq!(addresses_short(242, 12), None);
        let short = addresses_short(243, 11).unwrap_or_default();
        assert_eq!(short, "11 of 254 addresses of network.subnet are free");
        // Where plugins connect pods, none is used.
        assert_eq!(addresses_short(0, 1), None);
    }
}
