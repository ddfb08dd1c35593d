//! What the effects on the node take and give, as plain data.
//!
//! Called by: drivers, recovery and sessions, which fill and read it; implementations of [`super::Host`].
//! Invariant: nothing here acts; who holds a value decides what happens to the processes and descriptors in it.
//! Must not know: how an effect is made, phases.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_control::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_control::log_counts::LogCounts;
use coracle_control::process::Process;
use coracle_network::{Attachment, NetworkCounts};
use coracle_spec::id::{ContainerId, PodId};
use futures_channel::mpsc::Receiver;

use crate::config::ContainerConfig;
use crate::error::Error;
use crate::record::Plan;

/// A sandbox that was created; its keeper is not committed yet.
pub struct CreatedSandbox {
    /// Its keeper's process.
    pub process: Arc<Process>,
    /// The connection to its keeper.
    pub keeper: Keeper,
    /// The keeper's greeting.
    pub greeting: Greeting,
    /// The events that the keeper sends.
    pub events: Receiver<KeeperEvent>,
    /// Its attachment to the network.
    pub attachment: Option<Attachment>,
    /// While this is open, the keeper lives without a commit.
    pub lifeline: OwnedFd,
}

/// The input of a start.
pub struct StartRequest {
    /// The pod.
    pub pod: PodId,
    /// The pod's namespace of Kubernetes.
    pub namespace: String,
    /// The container.
    pub id: ContainerId,
    /// Whether the pod has a user namespace of its own.
    pub userns: bool,
    /// The pod's log directory.
    pub log_directory: String,
    /// The request.
    pub config: Arc<ContainerConfig>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// The keeper that starts it.
    pub keeper: Keeper,
    /// The engine that its code is compiled for.
    pub engine: KeeperEngine,
}

/// The engine of a keeper; the keeper's own executable compiles for an engine of another build.
#[derive(Clone, Debug)]
pub struct KeeperEngine {
    /// Its compatibility hash; empty when unknown.
    pub hash: String,
    /// The keeper's pid; 0 when there is none.
    pub pid: i32,
}

/// What the host counted, since the daemon's start where it is no amount.
#[derive(Clone, Debug, Default)]
pub struct HostCounts {
    /// What keepers count of logs; `None` if they cannot.
    pub log_counts: Option<LogCounts>,
    /// Bytes that writable layers had when they were measured last.
    pub writable_bytes: u64,
    /// Bytes of compiled code on the disk.
    pub compiled_bytes: u64,
    /// Files of it.
    pub compiled_files: u64,
    /// Requests for compiled code by result: it was there, it was not, it was there and failed verification.
    pub cache_requests: [(&'static str, u64); 3],
    /// Compilations by result.
    pub compilations: [(&'static str, u64); 4],
    /// Spawners that were started in place of one that was gone.
    pub spawner_restarts: u64,
    /// What the built-in network has and has done.
    pub network: NetworkCounts,
    /// Pods that CNI plugins still have to detach.
    pub owed_releases: u64,
    /// Where damaged records lie that were moved aside.
    pub quarantines: [PathBuf; 2],
}

/// Programs of the node that go with a container's start or end.
pub struct NodeHookRun {
    /// The pod.
    pub pod: PodId,
    /// The container.
    pub id: ContainerId,
    /// The plan, which has them.
    pub plan: Arc<Plan>,
    /// The container's first process: it has started. `None` if it has ended and its cgroup is gone.
    pub pid: Option<i32>,
}

/// A container that runs.
pub struct Started {
    /// Its first process.
    pub process: Arc<Process>,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
}

/// The result of an exec.
#[derive(Debug)]
pub struct ExecOutput {
    /// Its standard output, up to the host's limit.
    pub stdout: Vec<u8>,
    /// Its standard error, up to the host's limit.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal for a signal.
    pub code: i32,
}

/// What a sweep must leave alone.
#[derive(Debug, Default)]
pub struct Owned {
    /// Pods that have a record.
    pub pods: HashSet<String>,
    /// Pods whose keeper may live: their control sockets and pins stay.
    pub live: HashSet<String>,
    /// Pods whose records could not be used: everything of theirs stays.
    pub unrecovered: HashSet<String>,
    /// Something may be in use that no record names.
    pub has_unreadable: bool,
    /// Parents of our cgroups.
    pub parents: BTreeSet<String>,
    /// Attachments in use.
    pub attachments: Vec<Attachment>,
    /// Ids of objects that do not exist any more; processes of theirs may.
    pub dead: HashSet<String>,
    /// Directories of containers with these ids.
    pub debris: Vec<PathBuf>,
}

/// The result of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    /// What was removed, for the log.
    pub removed: Vec<String>,
    /// What could not be removed.
    pub errors: Vec<Error>,
}
