//! The snapshots of pods and containers that clients see, and the events about their changes.
//!
//! Written by: drivers, after a phase is on disk. Read by: `cri/*` for lists, status and event streams.
//! Invariants: reading holds a lock only to copy a pointer and never waits for a disk, a mount or a driver; objects
//! that are still being created are not shown. Must not know: how a phase was reached.

use std::borrow::Borrow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use coracle_spec::id::{ContainerId, PodId};
use tokio::sync::broadcast;

use super::config::{ContainerConfig, SandboxConfig};

/// `reason` of a container whose record cannot be used.
pub const UNREADABLE_REASON: &str = "RecordUnreadable";

/// A sandbox as CRI shows it. Times in nanoseconds since 1970 UTC.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// The request: metadata, labels, annotations, handler, namespaces.
    pub config: Arc<SandboxConfig>,
    /// `SANDBOX_READY`, else `SANDBOX_NOTREADY`.
    pub ready: bool,
    /// When RunPodSandbox began; greater than 0.
    pub created_at: i64,
    /// Its addresses, the primary one first; empty on the host's network and after a stop.
    pub ips: Vec<IpAddr>,
    /// Parent of its cgroups: the kubelet's, else the configured one.
    pub cgroup_parent: String,
}

/// A container's state as CRI names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// `CONTAINER_CREATED`.
    Created,
    /// `CONTAINER_RUNNING`.
    Running,
    /// `CONTAINER_EXITED`.
    Exited,
    /// `CONTAINER_UNKNOWN`.
    Unknown,
}

/// The two kinds of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerKind {
    /// A WebAssembly module or component.
    Wasm,
    /// A program of a Linux image.
    Linux,
}

impl ContainerKind {
    /// Its name in metrics, logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            ContainerKind::Wasm => "wasm",
            ContainerKind::Linux => "linux",
        }
    }
}

/// A container as CRI shows it. Times in nanoseconds since 1970 UTC, 0 = not yet.
#[derive(Clone, Debug)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub pod: PodId,
    /// The request: metadata, image spec, labels, annotations, mounts, resources.
    pub config: Arc<ContainerConfig>,
    /// `Image.id` of its image: `image_ref` and `image_id` of CRI.
    pub image_id: String,
    /// Its state.
    pub state: ContainerState,
    /// When it was created; greater than 0.
    pub created_at: i64,
    /// When it was started.
    pub started_at: i64,
    /// When it ended; nonzero exactly when `state` is `Exited`.
    pub finished_at: i64,
    /// Valid only when `finished_at` is nonzero.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `WasmTrap`, `StartError`, `KeeperLost`, `Unknown`; empty before the end.
    pub reason: String,
    /// Trap text or start failure; empty otherwise.
    pub message: String,
    /// Absolute path of its log; empty when output is discarded.
    pub log_path: String,
    /// The user it runs as, as the container sees it.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// `Image.id` of the images that it mounts, in the order of the config's mounts.
    pub image_volumes: Vec<String>,
    /// Number of the signal that stops it.
    pub stop_signal: i32,
    /// Its cgroup.
    pub cgroup: String,
}

/// What happened to a container or a sandbox. Source: cri-api `ContainerEventType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `CONTAINER_CREATED_EVENT`.
    Created,
    /// `CONTAINER_STARTED_EVENT`.
    Started,
    /// `CONTAINER_STOPPED_EVENT`.
    Stopped,
    /// `CONTAINER_DELETED_EVENT`.
    Deleted,
}

/// One change, with the pod as it was directly afterwards.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Id of the container, or of the sandbox for the sandbox's own events.
    pub container: String,
    /// When, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// The sandbox; its last snapshot when it is gone.
    pub pod: Arc<PodView>,
    /// All its containers that still exist.
    pub containers: Vec<Arc<ContainerView>>,
}

/// How many events a subscriber may fall behind before it loses the oldest ones.
pub const EVENT_QUEUE: usize = 1024;

#[derive(Default)]
struct Tables {
    pods: BTreeMap<PodId, Arc<PodView>>,
    containers: BTreeMap<ContainerId, Arc<ContainerView>>,
    kinds: BTreeMap<ContainerId, ContainerKind>,
    /// The containers of each sandbox that has some.
    of_pods: BTreeMap<PodId, BTreeSet<ContainerId>>,
}

/// The first two ids in `table` that begin with `prefix`, found without a walk.
fn like<Id: Ord + Clone + Borrow<str>, View>(table: &BTreeMap<Id, View>, prefix: &str) -> Vec<Id> {
    let from = table.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
    let ids = from.map(|(id, _)| id);
    let alike = ids.take_while(|id| (*id).borrow().starts_with(prefix));
    alike.take(2).cloned().collect()
}

/// The published snapshots of everything that exists.
pub struct StateCache {
    tables: RwLock<Tables>,
    events: broadcast::Sender<Arc<Event>>,
}

impl StateCache {
    /// An empty cache.
    pub fn new() -> StateCache {
        StateCache {
            tables: RwLock::default(),
            events: broadcast::channel(EVENT_QUEUE).0,
        }
    }

    /// All sandboxes.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.read().pods.values().cloned().collect()
    }

    /// One sandbox.
    pub fn pod(&self, id: &PodId) -> Option<Arc<PodView>> {
        self.read().pods.get(id).cloned()
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.read().containers.values().cloned().collect()
    }

    /// One container.
    pub fn container(&self, id: &ContainerId) -> Option<Arc<ContainerView>> {
        self.read().containers.get(id).cloned()
    }

    /// The containers of one pod.
    pub fn containers_of(&self, pod: &PodId) -> Vec<Arc<ContainerView>> {
        let tables = self.read();
        let own = tables.of_pods.get(pod).into_iter().flatten();
        own.filter_map(|id| tables.containers.get(id).cloned())
            .collect()
    }

    /// Ids of sandboxes that begin with `prefix`, at most two of them.
    pub fn pods_like(&self, prefix: &str) -> Vec<PodId> {
        like(&self.read().pods, prefix)
    }

    /// Ids of containers that begin with `prefix`, at most two of them.
    pub fn containers_like(&self, prefix: &str) -> Vec<ContainerId> {
        like(&self.read().containers, prefix)
    }

    /// Publishes `view`.
    pub fn show_pod(&self, view: PodView) {
        self.write().pods.insert(view.id.clone(), Arc::new(view));
    }

    /// Publishes `view`.
    pub fn show_container(&self, view: ContainerView) {
        let mut tables = self.write();
        let own = tables.of_pods.entry(view.pod.clone()).or_default();
        own.insert(view.id.clone());
        tables.containers.insert(view.id.clone(), Arc::new(view));
    }

    /// Publishes which kind of container it is, which CRI does not show.
    pub fn show_kind(&self, id: &ContainerId, kind: ContainerKind) {
        self.write().kinds.insert(id.clone(), kind);
    }

    /// The kind of a container; `None` when its record cannot be used.
    pub fn kind(&self, id: &ContainerId) -> Option<ContainerKind> {
        self.read().kinds.get(id).copied()
    }

    /// Removes the sandbox; returns its last snapshot.
    pub fn hide_pod(&self, id: &PodId) -> Option<Arc<PodView>> {
        self.write().pods.remove(id)
    }

    /// Removes the container; returns its last snapshot.
    pub fn hide_container(&self, id: &ContainerId) -> Option<Arc<ContainerView>> {
        let mut tables = self.write();
        tables.kinds.remove(id);
        let view = tables.containers.remove(id)?;
        if let Entry::Occupied(mut own) = tables.of_pods.entry(view.pod.clone()) {
            own.get_mut().remove(id);
            if own.get().is_empty() {
                own.remove();
            }
        }
        Some(view)
    }

    /// A stream of all events from now on; a slow reader loses the oldest ones and gets an error that says how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Sends an event to all subscribers, if there are any.
    pub fn publish(&self, kind: EventKind, container: &str, at: i64, pod: Arc<PodView>) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let containers = self.containers_of(&pod.id);
        let event = Event {
            kind,
            container: container.to_owned(),
            at,
            pod,
            containers,
        };
        // Err: the last subscriber has just gone.
        let _ = self.events.send(Arc::new(event));
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}
