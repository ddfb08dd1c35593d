//! What containers and pods use: selects the objects to measure and has the host measure them.
//!
//! Called by: `cri/stats`. Calls: the [`super::StateCache`] for the objects, the host on the blocking pool.
//! Invariants: no driver and no keeper is involved; a cancelled request leaves nothing behind but cached rates.
//! Must not know: files, CRI messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_cgroup::{DeviceIo, HugepageStats, Stats};
use coracle_spec::Wakes;

use super::{ContainerState, ContainerView, Error, PodView, Pods};
use crate::blocking::blocking;

/// The usage of one cgroup.
#[derive(Clone, Debug)]
pub struct Usage {
    /// When it was read, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// The kernel's counters.
    pub stats: Stats,
    /// CPU nanoseconds per second, from the last two measurements.
    pub nano_cores: Option<u64>,
}

/// The usage of one container.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// The container.
    pub view: Arc<ContainerView>,
    /// `None` when it has ended.
    pub usage: Option<Usage>,
    /// Its writable layer; `None` while a large one was not measured yet.
    pub layer: Option<LayerUsage>,
}

/// The usage of one pod.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// The pod.
    pub view: Arc<PodView>,
    /// All of it, including its keeper.
    pub usage: Option<Usage>,
    /// Number of its processes, including its keeper.
    pub processes: u64,
    /// When [`PodUsage::interfaces`] was read, in nanoseconds since 1970 UTC.
    pub network_at: i64,
    /// Its interfaces except loopback; `None` on the host's network.
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
    /// No other pod has cgroups below the same parent.
    pub owns_parent: bool,
}

/// The contents of a writable layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// Bytes of disk that its files occupy.
    pub bytes: u64,
    /// Files, directories and links, each inode once.
    pub inodes: u64,
}

/// Traffic of one interface since it was created. Source: proc(5), `/proc/net/dev`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name inside the pod.
    pub name: String,
    /// Received.
    pub received: Traffic,
    /// Sent.
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

/// What metrics show of a running container beyond its [`ContainerUsage`].
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// How often the kernel killed one of its processes for lack of memory.
    pub oom_kills: u64,
    /// Its traffic with each block device.
    pub devices: Vec<DeviceIo>,
    /// Its huge pages.
    pub hugepages: Vec<HugepageStats>,
    /// The number of its processes.
    pub processes: u64,
    /// What its processes have open, if that was requested.
    pub open_files: Option<OpenFiles>,
    /// Of a function that may sleep: how often it was woken.
    pub wakes: Option<Wakes>,
}

/// What the processes of a container have open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// File descriptors; counting ends at the host's limit.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// The soft limit of its first process for open files; `None` for no limit, or no process.
    pub limit: Option<u64>,
}

/// A pod's usage, with details of its containers.
#[derive(Clone, Debug)]
pub struct PodDetails {
    /// Its usage.
    pub usage: PodUsage,
    /// Of each of the containers in `usage`, in their order; `None` for one that does not run.
    pub containers: Vec<Option<Details>>,
}

impl Pods {
    /// The usage of each ready sandbox with details of its running containers; with `open_files` also what their
    /// processes have open, which costs a look at each descriptor.
    pub async fn detailed_usage(&self, open_files: bool) -> Result<Vec<PodDetails>, Error> {
        let host = Arc::clone(&self.shared.host);
        let shared = Arc::clone(&self.shared);
        let (all, everybody) = (self.containers(), self.pods());
        blocking("measuring sandboxes in detail", move || {
            host.forget_measures(&all, &everybody);
            let ready = everybody
                .iter()
                .filter(|view| view.ready)
                .cloned()
                .collect();
            let usages = host.measure_pods(measured(ready, &all, &everybody));
            let details = |usage: &ContainerUsage| {
                let runs = usage.view.state == ContainerState::Running;
                let kind = shared.cache.kind(&usage.view.id);
                runs.then(|| host.details(&usage.view, kind, open_files))
            };
            let detailed = |usage: PodUsage| PodDetails {
                containers: usage.containers.iter().map(details).collect(),
                usage,
            };
            Ok(usages.into_iter().map(detailed).collect())
        })
        .await
    }

    /// The usage of each of `containers`, in their order; a container that has ended has no numbers.
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

    /// The usage of each of `pods`, with its containers, in their order.
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

/// Gives each of `pods` its containers, and finds out which pods share a parent cgroup.
fn measured(
    pods: Vec<Arc<PodView>>,
    containers: &[Arc<ContainerView>],
    everybody: &[Arc<PodView>],
) -> Vec<Measured> {
    let mut parents: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for pod in everybody {
        let (uid, parent) = (pod.config.name.uid.as_str(), pod.cgroup_parent.as_str());
        let owner = parents.entry(parent).or_insert((uid, true));
        // Successive attempts of one pod use the same parent of their own.
        owner.1 &= owner.0 == uid;
    }
    let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for container in containers {
        let of = members.entry(&container.pod).or_default();
        of.push(Arc::clone(container));
    }
    let one = |view: Arc<PodView>| {
        // The configured parent is shared, even while it has only one pod.
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
