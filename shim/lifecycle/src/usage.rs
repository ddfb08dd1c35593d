//! What containers and pods use, which of them are measured, and the errand to the host that measures them.
//!
//! Called by: `cri/stats`. Calls: the [`super::StateCache`] for who exists, the host on the blocking pool.
//! Invariants: no driver and no keeper is asked; a request that goes away leaves nothing behind but memory of rates.
//! Not here: files, CRI messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_cgroup::Stats;

use super::{ContainerView, Error, PodView, Pods};
use crate::blocking::blocking;

/// What one cgroup uses.
#[derive(Clone, Debug)]
pub struct Usage {
    /// When it was read, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// The kernel's counters.
    pub stats: Stats,
    /// CPU time per second in nanoseconds, from the last two times that somebody asked.
    pub nano_cores: Option<u64>,
}

/// What one container uses.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// The container.
    pub view: Arc<ContainerView>,
    /// `None` when it has ended.
    pub usage: Option<Usage>,
    /// Its writable layer; `None` while a large one was not looked at yet.
    pub layer: Option<LayerUsage>,
}

/// What one pod uses.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// The pod.
    pub view: Arc<PodView>,
    /// All of it, its keeper's share included.
    pub usage: Option<Usage>,
    /// Number of processes in it, its keeper's included.
    pub processes: u64,
    /// When [`PodUsage::interfaces`] was read, in nanoseconds since 1970 UTC.
    pub network_at: i64,
    /// Its interfaces but for loopback; `None` on the host's network.
    pub interfaces: Option<Vec<Interface>>,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
}

/// A pod to be measured.
pub struct Measured {
    /// The pod.
    pub view: Arc<PodView>,
    /// Its containers.
    pub containers: Vec<Arc<ContainerView>>,
    /// Nobody else has cgroups below the parent of its own.
    pub owns_parent: bool,
}

/// What a writable layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was looked at, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// Bytes of disk that its files take.
    pub bytes: u64,
    /// Files, directories and links, each inode once.
    pub inodes: u64,
}

/// What went through one interface since it was made. Source: proc(5), `/proc/net/dev`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name inside the pod.
    pub name: String,
    /// What it received.
    pub received: Traffic,
    /// What it sent.
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

impl Pods {
    /// What each of `containers` uses, in their order; one that has ended has no numbers.
    pub async fn container_usage(
        &self,
        containers: Vec<Arc<ContainerView>>,
    ) -> Result<Vec<ContainerUsage>, Error> {
        let host = Arc::clone(&self.shared.host);
        let (all, pods) = (self.containers(), self.pods());
        blocking("measuring containers", move || {
            host.forget_measures(&all, &pods);
            Ok(host.measure(containers))
        })
        .await
    }

    /// What each of `pods` uses, with its containers, in their order.
    pub async fn pod_usage(&self, pods: Vec<Arc<PodView>>) -> Result<Vec<PodUsage>, Error> {
        let host = Arc::clone(&self.shared.host);
        let (all, everybody) = (self.containers(), self.pods());
        blocking("measuring sandboxes", move || {
            host.forget_measures(&all, &everybody);
            Ok(host.measure_pods(measured(pods, &all, &everybody)))
        })
        .await
    }
}

/// Gives each of `pods` its containers, and finds out who shares a parent cgroup with another pod.
fn measured(
    pods: Vec<Arc<PodView>>,
    containers: &[Arc<ContainerView>],
    everybody: &[Arc<PodView>],
) -> Vec<Measured> {
    let mut parents: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for pod in everybody {
        let (uid, parent) = (pod.config.name.uid.as_str(), pod.cgroup_parent.as_str());
        let owner = parents.entry(parent).or_insert((uid, true));
        // Attempts of one pod follow each other in its own parent.
        owner.1 &= owner.0 == uid;
    }
    let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for container in containers {
        let of = members.entry(&container.pod).or_default();
        of.push(Arc::clone(container));
    }
    let one = |view: Arc<PodView>| {
        // The configured parent is everybody's, even while only one pod is there.
        let named = !view.config.cgroup_parent.is_empty();
        let alone = parents
            .get(view.cgroup_parent.as_str())
            .is_some_and(|(_, alone)| *alone);
        Measured {
            containers: members.remove(&view.id).unwrap_or_default(),
            owns_parent: named && alone,
            view,
        }
    };
    pods.into_iter().map(one).collect()
}
