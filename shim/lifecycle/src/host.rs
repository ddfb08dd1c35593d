//! The host as the lifecycle sees it: one method for each effect.
//!
//! Called by: drivers, recovery, sessions, usage. Implemented by: the shim's `host`, and in memory by tests.
//! Invariants: every effect can be repeated and succeeds when the object is already absent; whatever waits for another
//! process has a deadline; a method that blocks says so, and is called on the blocking pool: it never waits for processes
//! of a tenant, which may take for ever.
//! Must not know: phases.

mod values;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Limits;
use coracle_control::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_control::process::Process;
use coracle_images::Image;
use coracle_network::Attachment;
use coracle_spec::IdRange;
use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::Streams;
use futures_channel::mpsc::Receiver;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::config::{AttachConfig, ContainerConfig, ExecConfig, HandlerSettings, SandboxConfig};
use super::error::Error;
use super::layout::Layout;
use super::record::{Plan, PodRecord};
use super::syncer::Syncer;
use super::usage::{ContainerUsage, Details, Measured, PodUsage};
use super::view::{ContainerKind, ContainerView, PodView};

pub use values::{
    CreatedSandbox, ExecOutput, HostCounts, KeeperEngine, NodeHookRun, Owned, StartRequest,
    Started, Swept,
};

/// How long a keeper may take to greet.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// An effect under way; dropping it cancels it.
pub type EffectFuture<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Effects on the node.
pub trait Host: Send + Sync + 'static {
    /// The paths of the records.
    fn layout(&self) -> &Layout;

    /// Writes records to the disk in the background.
    fn syncer(&self) -> &Syncer;

    /// Parent of a pod's cgroups: below the parent that the kubelet gave, else below the configured one.
    /// Errors: Invalid when the path has the form of the other cgroup driver.
    fn cgroup_parent(&self, requested: &str, pod: &PodId) -> Result<String, Error>;

    /// The parent of the cgroups of pods for which the kubelet names none, as a path.
    fn default_cgroup_parent(&self) -> String;

    /// Limit of the memory that the requests of all sandboxes and containers occupy. Bytes.
    fn all_requests_bytes(&self) -> u64;

    /// What the host counted, for metrics. O(1).
    fn counts(&self) -> HostCounts;

    /// Packets that the egress lists of pods have refused since the daemon's start; `pods` are those under a list. Blocks for
    /// 100 ms at most.
    fn egress_refusals(&self, pods: Vec<PodId>) -> u64;

    /// Leases a block of host ids. Errors: all blocks are leased.
    fn lease_ids(&self) -> Result<IdRange, Error>;

    /// Leases the block of host ids that a record names.
    fn claim_ids(&self, range: IdRange);

    /// Releases a block of host ids; one that is not leased is fine.
    fn release_ids(&self, range: IdRange);

    /// Takes the host ids that the kubelet gives pod `uid`, for its sandbox. Errors: somebody else has or may get one of
    /// them; both ranges.
    fn give_ids(&self, pod: &PodId, uid: &str, range: IdRange) -> Result<(), Error>;

    /// As [`Host::give_ids`], for a record: the sandbox has them already.
    fn adopt_ids(&self, pod: &PodId, uid: &str, range: IdRange);

    /// Thaws of these cgroups what a killing by a daemon or keeper that died has frozen. Failures are logged. Blocks.
    fn thaw_left(&self, cgroups: &[String]);

    /// Takes back what the sandbox was given; what it was not given is fine.
    fn take_back_ids(&self, pod: &PodId, range: IdRange);

    /// The SELinux level of a new pod: the requested one, else one with a pair of categories of its own; `None` without
    /// SELinux. Errors: all pairs are leased.
    fn lease_level(&self, pod: &PodId, config: &SandboxConfig) -> Result<Option<String>, Error>;

    /// The settings of a new pod's handler, if it is none of the built-in ones.
    fn handler_settings(&self, config: &SandboxConfig) -> Option<Box<HandlerSettings>>;

    /// Reserves the pair of an SELinux level for a pod or a container, so that no pod is given it.
    fn claim_level(&self, holder: &str, level: &str);

    /// The same for a container that requests a level of its own; no effect for other containers.
    fn claim_own_level(&self, id: &ContainerId, config: &ContainerConfig);

    /// Releases the pair of a pod or a container, if it has one.
    fn release_level(&self, holder: &str);

    /// Stops relabelling the volumes of a pod, now and until the pod is forgotten.
    fn stop_relabels(&self, pod: &PodId);

    /// Forgets the relabelling of a pod that is gone.
    fn forget_relabels(&self, pod: &PodId);

    /// Why new sandboxes get no network, for users to read; `None` if they do. Answers within 100 ms.
    fn network_problem(self: Arc<Self>) -> BoxFuture<'static, Option<String>>;

    /// What connects new sandboxes to the network, for users to read.
    fn network_mode(&self) -> String;

    /// Creates namespaces, network, cgroup and keeper of a pod whose record is saved. Undoes all of it on failure.
    fn create_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
    ) -> EffectFuture<'a, CreatedSandbox>;

    /// Connects to a pod's keeper and reads its greeting. Errors: Deadline; Io when nobody listens.
    fn connect<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        timeout: Duration,
    ) -> EffectFuture<'a, (Keeper, Greeting, Receiver<KeeperEvent>)>;

    /// Lets the keeper live on when this process ends.
    fn commit<'a>(self: Arc<Self>, pod: &'a PodId, keeper: &'a Keeper) -> EffectFuture<'a, ()>;

    /// Ends a pod's keeper and releases namespaces, address, cgroup and control socket.
    fn tear_down_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
        keeper: Option<Keeper>,
        process: Option<Arc<Process>>,
    ) -> EffectFuture<'a, ()>;

    /// Removes a pod's record, then its directory. Blocks.
    fn forget_pod(&self, pod: &PodId) -> Result<(), Error>;

    /// Compiles an image's module into the cache for the engine of new keepers, in the turn of `namespace`. No effect for a
    /// Linux image.
    fn prepare_image<'a>(
        self: Arc<Self>,
        image: &'a Image,
        namespace: &'a str,
    ) -> EffectFuture<'a, ()>;

    /// Leases the images and modules that the plan of a recovered container uses, even if they were removed.
    fn claim_images(&self, holder: &ContainerId, plan: &Plan);

    /// Suspends image collection: some images in use are unknown.
    fn suspend_collection(&self);

    /// Collects unused images at once, then after every removal of an image or of a container. Never returns.
    fn collect_garbage(self: Arc<Self>) -> BoxFuture<'static, ()>;

    /// Plans container `id` of `pod`; its images are leased to it from here on.
    /// Errors: Missing for an absent image; Invalid, naming what is wrong.
    fn plan<'a>(
        self: Arc<Self>,
        pod: &'a PodRecord,
        id: &'a ContainerId,
        config: &'a Arc<ContainerConfig>,
        engine: &'a KeeperEngine,
    ) -> EffectFuture<'a, Plan>;

    /// Creates a container's cgroup, files and writable layer; its directory and record exist. Blocks.
    fn build(
        &self,
        pod: &PodRecord,
        id: &ContainerId,
        config: &ContainerConfig,
        plan: &Plan,
    ) -> Result<(), Error>;

    /// Has the keeper start a container. Its log file exists when this returns.
    /// Errors: StartFailed when the jail or the program failed; the container has then ended.
    fn start_container(self: Arc<Self>, request: StartRequest) -> EffectFuture<'static, Started>;

    /// Waits for the end of a start that an earlier daemon began. Errors: as of [`Host::start_container`].
    fn await_start<'a>(
        self: Arc<Self>,
        keeper: &'a Keeper,
        container: &'a ContainerId,
    ) -> EffectFuture<'a, Started>;

    /// Opens the container's log anew and hands it to the keeper.
    fn reopen_log<'a>(
        self: Arc<Self>,
        keeper: &'a Keeper,
        id: &'a ContainerId,
        log_directory: &'a str,
        path: &'a str,
    ) -> EffectFuture<'a, ()>;

    /// Sends `signal` to the container's first process, which learns after how long it will be killed if `grace` says so.
    /// A process that has ended is fine.
    fn signal(&self, process: &Process, signal: i32, grace: Option<Duration>) -> Result<(), Error>;

    /// Kills all processes of a container and waits until all have ended, at most for the cgroup's own timeout.
    fn kill(
        self: Arc<Self>,
        process: Option<Arc<Process>>,
        cgroup: String,
    ) -> EffectFuture<'static, ()>;

    /// Sets what `change` names on the cgroup `path`. Blocks.
    /// Errors: Invalid when the node cannot do it; WrongPhase for a memory limit below the current use; Missing when
    /// the cgroup is gone. The limits are then as before.
    fn change_limits(&self, plan: &Plan, change: &Limits) -> Result<(), Error>;

    /// How often the kernel killed a process of a cgroup for lack of memory; 0 when the cgroup is gone.
    fn oom_kills(&self, cgroup: &str) -> u64;

    /// The exit code that the keeper recorded for a container.
    fn exit_code<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        id: &'a ContainerId,
    ) -> BoxFuture<'a, Option<i32>>;

    /// Removes the cgroup of a container that has ended.
    fn clean_up(self: Arc<Self>, cgroup: String) -> EffectFuture<'static, ()>;

    /// Runs the programs of the node that go with a container's start or end. What fails is logged and changes nothing.
    fn run_node_hooks(self: Arc<Self>, hooks: NodeHookRun) -> BoxFuture<'static, ()>;

    /// Removes the keeper's record of an ended container, in memory and on disk, once `recorded` reports that the
    /// container's own record is on the disk. Returns at once. Removes nothing if `recorded` is closed, so that a later
    /// daemon can read it.
    fn drop_exit(
        &self,
        keeper: Option<Keeper>,
        pod: &PodId,
        id: &ContainerId,
        recorded: oneshot::Receiver<()>,
    );

    /// Removes everything of a container, in its keeper as well.
    fn forget_container<'a>(
        self: Arc<Self>,
        keeper: Option<Keeper>,
        pod: &'a PodId,
        id: &'a ContainerId,
        cgroup: String,
    ) -> EffectFuture<'a, ()>;

    /// Runs `argv` in the running container of `request`. Without `limit` it waits for ever.
    ///
    /// Errors: StartFailed when the program cannot be executed; Deadline when it was killed at its limit; WrongPhase
    /// when the container has ended meanwhile; Exhausted when the node has no memory left for its output.
    fn exec_sync<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> EffectFuture<'a, ExecOutput>;

    /// Runs a program in the running container of `request` with the client's streams; returns its exit code.
    ///
    /// Errors: StartFailed when the program cannot be executed, WrongPhase when the container has ended meanwhile.
    fn exec_stream<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        config: ExecConfig,
        streams: Streams,
    ) -> EffectFuture<'a, i32>;

    /// Joins a client to the running container of `request` until its output ends.
    ///
    /// Errors: Invalid when the client sends input and the container takes none; WrongPhase when it has ended
    /// meanwhile.
    fn attach<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        config: AttachConfig,
        streams: Streams,
    ) -> EffectFuture<'a, ()>;

    /// Connects to `port` of 127.0.0.1, else of ::1, in the network namespace of the pod or, with `on_node`, of the
    /// node.
    ///
    /// Errors: Io when both refuse the connection; it names both reasons.
    fn dial<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        on_node: bool,
        port: u16,
    ) -> EffectFuture<'a, TcpStream>;

    /// The usage of each of `containers`, in their order. Blocks.
    fn measure(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage>;

    /// The usage of each of `pods`, in their order. Blocks.
    fn measure_pods(&self, pods: Vec<Measured>) -> Vec<PodUsage>;

    /// Details of a running container of this kind; with `open_files` also what its processes have open. What cannot be read is 0.
    /// Blocks.
    fn details(
        &self,
        container: &ContainerView,
        kind: Option<ContainerKind>,
        open_files: bool,
    ) -> Details;

    /// Drops cached measurements of containers and pods that are gone, once there are many. `containers` and `pods` are
    /// all that exist.
    fn forget_measures(&self, containers: &[Arc<ContainerView>], pods: &[Arc<PodView>]);

    /// Removes everything on the host that `owned` does not name.
    fn sweep(self: Arc<Self>, owned: Owned) -> BoxFuture<'static, Swept>;

    /// Removes compiled code that neither this daemon's engine nor one of `hashes` can run. Blocks.
    fn sweep_compiled(&self, hashes: Vec<String>) -> Result<(), Error>;

    /// Whether a process runs in a cgroup named after one of `ids`, wherever it is. Blocks.
    fn has_processes(&self, ids: &HashSet<String>) -> bool;

    /// Reserves the host ids and SELinux categories of processes in cgroups named after `ids`. Blocks.
    fn claim_ids_of(&self, ids: &HashSet<String>);

    /// Kills the processes in cgroups named after `ids` and removes those cgroups, under `parent` also empty ones.
    fn end_processes(
        self: Arc<Self>,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> EffectFuture<'static, ()>;

    /// Ends a pod whose records cannot be used and releases what it holds, as far as its id and those of its containers
    /// tell. Its records stay.
    fn end_unreadable<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> EffectFuture<'a, ()>;

    /// Removes the records and directories of such a pod, or moves aside what cannot be removed. Blocks.
    fn forget_unreadable(&self, pod: &PodId, containers: &[ContainerId]) -> Result<(), Error>;

    /// Claims again what a recovered pod holds of the network.
    fn restore_network(self: Arc<Self>, attachment: Attachment) -> EffectFuture<'static, ()>;

    /// Removes from the node what is there for pods in general, if no pod is left. The last call of a daemon. Blocks.
    fn retire(&self);
}
