//! The host as the lifecycle knows it: what may be done to the world, one method an effect.
//!
//! Called by: drivers, recovery, sessions, usage. Implemented by: the shim's `host`, by tests in memory.
//! Invariants: every effect can be repeated and takes an absent thing for done; whatever waits for another process has a
//! deadline; a method that blocks says so, and is called on the blocking pool.
//! Not here: phases, how an effect is done.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Limits;
use coracle_images::Image;
use coracle_network::Attachment;
use coracle_runtime::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_runtime::process::Process;
use coracle_spec::IdRange;
use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::Streams;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::config::{AttachConfig, ContainerConfig, ExecConfig, SandboxConfig};
use super::error::Error;
use super::layout::Layout;
use super::record::{Plan, PodRecord};
use super::syncer::Syncer;
use super::usage::{ContainerUsage, Measured, PodUsage};
use super::view::{ContainerView, PodView};

/// How long a keeper may take to greet.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// An effect under way; dropping it gives it up.
pub type EffectFuture<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Everything that may be done to the world.
pub trait Host: Send + Sync + 'static {
    /// Where records lie.
    fn layout(&self) -> &Layout;

    /// Who brings records to the disk.
    fn syncer(&self) -> &Syncer;

    /// Parent of a pod's cgroups: below the parent that the kubelet gave, else below the configured one.
    /// Errors: Invalid when the kubelet speaks of the other driver's kind.
    fn cgroup_parent(&self, asked: &str, pod: &PodId) -> Result<String, Error>;

    /// Where the cgroups of pods lie that name no parent, as a path.
    fn default_cgroup_parent(&self) -> String;

    /// What the requests of all sandboxes and containers may hold. Bytes.
    fn all_requests_bytes(&self) -> u64;

    /// Leases a block of host ids. Errors: all are taken.
    fn lease_ids(&self) -> Result<IdRange, Error>;

    /// Takes the block of host ids that a record holds, so that nobody else gets it.
    fn claim_ids(&self, range: IdRange);

    /// Gives a block of host ids back. One that is not leased stays as it is.
    fn release_ids(&self, range: IdRange);

    /// The SELinux level of a new pod: what it asks for, else one with a pair of categories of its own; none without
    /// SELinux. Errors: all pairs are taken.
    fn lease_level(&self, pod: &PodId, config: &SandboxConfig) -> Result<Option<String>, Error>;

    /// Takes the pair of an SELinux level for a pod or a container, so that no pod is handed it.
    fn claim_level(&self, holder: &str, level: &str);

    /// The same for a container that asks for a level of its own; nothing for any other.
    fn claim_own_level(&self, id: &ContainerId, config: &ContainerConfig);

    /// Gives back the pair that a pod or a container holds, if it holds one.
    fn release_level(&self, holder: &str);

    /// Ends the labelling of a pod's volumes, now and until the pod is forgotten.
    fn stop_relabels(&self, pod: &PodId);

    /// Forgets a pod that is gone.
    fn forget_relabels(&self, pod: &PodId);

    /// Why new sandboxes get no network, for users to read; `None` if they do. Answers within 100 ms.
    fn network_problem(self: Arc<Self>) -> BoxFuture<'static, Option<String>>;

    /// Makes namespaces, network, cgroup and keeper of a pod whose record is saved. Undoes all of it on failure.
    fn create_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
    ) -> EffectFuture<'a, CreatedSandbox>;

    /// Connects to a pod's keeper and reads its greeting. Errors: Deadline, or nobody listens.
    fn connect<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        timeout: Duration,
    ) -> EffectFuture<'a, (Keeper, Greeting, UnboundedReceiver<KeeperEvent>)>;

    /// Lets the keeper live on without its lifeline.
    fn commit<'a>(self: Arc<Self>, pod: &'a PodId, keeper: &'a Keeper) -> EffectFuture<'a, ()>;

    /// Ends a pod's keeper and gives back namespaces, address, cgroup and control socket.
    fn tear_down_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
        keeper: Option<Keeper>,
        process: Option<Arc<Process>>,
    ) -> EffectFuture<'a, ()>;

    /// Removes a pod's record, then all that its directory holds. Blocks.
    fn forget_pod(&self, pod: &PodId) -> Result<(), Error>;

    /// Compiles an image's module into the cache for the engine that new keepers have. A Linux image needs nothing.
    fn prepare_image<'a>(self: Arc<Self>, image: &'a Image) -> EffectFuture<'a, ()>;

    /// Keeps for a container of an earlier daemon what its plan says that it uses, removed or not.
    fn claim_images(&self, holder: &ContainerId, plan: &Plan);

    /// Collects no image from now on: nobody knows which ones are used.
    fn suspend_collection(&self);

    /// Collects unused images at once, then whenever something was removed or a container that used it has gone. Never
    /// ends.
    fn collect_garbage(self: Arc<Self>) -> BoxFuture<'static, ()>;

    /// Decides what container `id` of `pod` is to be; its images are leased to it from here on.
    /// Errors: Missing for an absent image; Invalid, naming what is wrong.
    fn plan<'a>(
        self: Arc<Self>,
        pod: &'a PodRecord,
        id: &'a ContainerId,
        config: &'a Arc<ContainerConfig>,
        engine: &'a KeeperEngine,
    ) -> EffectFuture<'a, Plan>;

    /// Makes a container's cgroup, files and writable layer; its directory and record are there. Blocks.
    fn build(
        &self,
        pod: &PodRecord,
        id: &ContainerId,
        config: &ContainerConfig,
        plan: &Plan,
    ) -> Result<(), Error>;

    /// Has the keeper run it. Its log file exists when this returns.
    /// Errors: StartFailed when the jail or the program failed; the container then has ended.
    fn start_container(self: Arc<Self>, launch: StartRequest) -> EffectFuture<'static, Started>;

    /// The end of a start that an earlier daemon began. Errors: as of [`Host::start_container`].
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

    /// Sends `signal` to its first process. One that has ended is fine.
    fn signal(&self, process: &Process, signal: i32) -> Result<(), Error>;

    /// Kills all its processes. Blocks until none is left, at most for the cgroup's own timeout.
    fn kill(&self, process: Option<&Process>, cgroup: &str) -> Result<(), Error>;

    /// Sets what `change` names on the cgroup `path`. Blocks.
    /// Errors: Invalid for what the node cannot do; WrongPhase for a memory limit below what is in use; Missing when
    /// the cgroup is gone. The limits are then as they were.
    fn change_limits(&self, path: &str, change: &Limits) -> Result<(), Error>;

    /// How often the kernel killed for memory in a cgroup; 0 when the cgroup is gone.
    fn oom_kills(&self, cgroup: &str) -> u64;

    /// The exit code that the keeper has recorded of a container.
    fn exit_code<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        id: &'a ContainerId,
    ) -> BoxFuture<'a, Option<i32>>;

    /// Removes the cgroup of a container that has ended.
    fn clean_up(self: Arc<Self>, cgroup: String) -> EffectFuture<'static, ()>;

    /// Removes what the keeper keeps of a container that has ended, in memory and on disk, once `recorded` says that its
    /// own record is on the disk. Not waited for; never if that is closed, for a later daemon to read it again.
    fn drop_exit(
        &self,
        keeper: Option<Keeper>,
        pod: &PodId,
        id: &ContainerId,
        recorded: oneshot::Receiver<()>,
    );

    /// Removes everything that is left of a container, in its keeper as well.
    fn forget_container<'a>(
        self: Arc<Self>,
        keeper: Option<Keeper>,
        pod: &'a PodId,
        id: &'a ContainerId,
        cgroup: String,
    ) -> EffectFuture<'a, ()>;

    /// Runs `argv` in the container of `container`, which runs. `limit` of `None` waits for ever.
    ///
    /// Errors: StartFailed when the program cannot be executed; Deadline when it was killed for not ending in time;
    /// WrongPhase when the container has ended meanwhile; Exhausted when the node had no room for its output.
    fn exec_sync<'a>(
        self: Arc<Self>,
        launch: &'a StartRequest,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> EffectFuture<'a, ExecOutput>;

    /// Runs a program in the container of `container`, which runs, with the client's streams; its exit code.
    ///
    /// Errors: StartFailed when the program cannot be executed, WrongPhase when the container has ended meanwhile.
    fn exec_stream<'a>(
        self: Arc<Self>,
        launch: &'a StartRequest,
        config: ExecConfig,
        streams: Streams,
    ) -> EffectFuture<'a, i32>;

    /// Joins a client to the container of `container`, which runs, until its output ends.
    ///
    /// Errors: Invalid when its input is asked for and it was made without; WrongPhase when it has ended meanwhile.
    fn attach<'a>(
        self: Arc<Self>,
        launch: &'a StartRequest,
        config: AttachConfig,
        streams: Streams,
    ) -> EffectFuture<'a, ()>;

    /// Connects to `port` of 127.0.0.1, else of ::1, in the pod's network namespace or, `on_node`, in the node's.
    ///
    /// Errors: Io when neither takes the connection; it names both refusals.
    fn dial<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        on_node: bool,
        port: u16,
    ) -> EffectFuture<'a, TcpStream>;

    /// What each of `containers` uses, in their order. Blocks.
    fn measure(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage>;

    /// What each of `pods` uses, in their order. Blocks.
    fn measure_pods(&self, pods: Vec<Measured>) -> Vec<PodUsage>;

    /// Forgets what is remembered of containers and pods that are no more, once that has become much. `containers`
    /// and `pods` are all that exist.
    fn forget_measures(&self, containers: &[Arc<ContainerView>], pods: &[Arc<PodView>]);

    /// Removes what `owned` does not name. Blocks.
    fn sweep(&self, owned: &Owned) -> Swept;

    /// Drops compiled code that neither this daemon's engine nor one of `hashes` can run. Blocks.
    fn sweep_compiled(&self, hashes: Vec<String>) -> Result<(), Error>;

    /// Whether a process runs in a cgroup named after one of `ids`, wherever that lies. Blocks.
    fn has_processes(&self, ids: &HashSet<String>) -> bool;

    /// Keeps the host ids and SELinux categories of processes in cgroups named after `ids` from being given out again.
    /// Blocks.
    fn claim_ids_of(&self, ids: &HashSet<String>);

    /// Kills what runs in cgroups named after `ids` and removes those, under `parent` also the empty ones. Blocks.
    fn end_processes(&self, ids: &HashSet<String>, parent: Option<String>) -> Result<(), Error>;

    /// Ends everything of a pod of whose records little is known, and gives back what it holds, as far as its id and
    /// those of its containers tell. Its records stay.
    fn end_unreadable<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> EffectFuture<'a, ()>;

    /// Removes the records and directories of a pod that was given up, or moves aside what cannot be removed. Blocks.
    fn forget_unreadable(&self, pod: &PodId, containers: &[ContainerId]) -> Result<(), Error>;

    /// Takes back what a pod that is understood again holds of the network.
    fn restore_network(self: Arc<Self>, attachment: Attachment) -> EffectFuture<'static, ()>;
}

/// A sandbox that was created; its keeper is not committed yet.
pub struct CreatedSandbox {
    /// Its keeper's process.
    pub process: Arc<Process>,
    /// The connection to its keeper.
    pub keeper: Keeper,
    /// The keeper's greeting.
    pub greeting: Greeting,
    /// The events that the keeper sends.
    pub events: UnboundedReceiver<KeeperEvent>,
    /// Its place in the network.
    pub attachment: Option<Attachment>,
    /// While this is open, the keeper lives without a commit.
    pub lifeline: OwnedFd,
}

/// What a start needs.
pub struct StartRequest {
    /// The pod.
    pub pod: PodId,
    /// The container.
    pub id: ContainerId,
    /// Whether the pod has a user namespace of its own.
    pub userns: bool,
    /// The pod's log directory.
    pub log_directory: String,
    /// The request.
    pub config: Arc<ContainerConfig>,
    /// What came of it.
    pub plan: Arc<Plan>,
    /// Who runs it.
    pub keeper: Keeper,
    /// For which engine its code is needed.
    pub engine: KeeperEngine,
}

/// The engine of a keeper; one of another build compiles with the keeper's own executable.
#[derive(Clone, Debug)]
pub struct KeeperEngine {
    /// Its compatibility hash; empty when nobody knows it.
    pub hash: String,
    /// The keeper's pid; 0 when there is none.
    pub pid: i32,
}

/// A container that runs.
pub struct Started {
    /// Its first process.
    pub process: Arc<Process>,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
}

/// What an exec came to.
#[derive(Debug)]
pub struct ExecOutput {
    /// Its standard output, up to what the host keeps.
    pub stdout: Vec<u8>,
    /// The same of standard error.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal for a signal.
    pub code: i32,
}

/// What is not to be swept.
#[derive(Debug, Default)]
pub struct Owned {
    /// Pods that have a record.
    pub pods: HashSet<String>,
    /// Pods whose keeper may live: their control sockets and pins stay.
    pub live: HashSet<String>,
    /// Pods of which too little is known to tell what they hold: all of it stays.
    pub kept: HashSet<String>,
    /// Something may be in use of which no record tells.
    pub has_unreadable: bool,
    /// Parents under which our cgroups lie.
    pub parents: BTreeSet<String>,
    /// Addresses in use.
    pub attachments: Vec<Attachment>,
    /// Ids known to be nobody's any more, with processes perhaps.
    pub dead: HashSet<String>,
    /// Directories of containers among those.
    pub debris: Vec<PathBuf>,
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// What was removed, for the log.
    pub removed: Vec<String>,
    /// What could not be.
    pub errors: Vec<Error>,
}
