//! A host in memory: keeps records in a directory, creates nothing else, and counts calls.
//!
//! Invariant: no sandbox can be created here, because a keeper needs the kernel. Must not know: what tests expect.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
use tokio::sync::{Semaphore, oneshot};

use crate::scratch::Scratch;
use crate::{
    AttachConfig, ContainerConfig, ContainerKind, ContainerUsage, ContainerView, CreatedSandbox,
    Details, EffectFuture, Error, ExecConfig, ExecOutput, HandlerSettings, Host, HostCounts,
    KeeperEngine, Kind, Layout, Measured, NodeHookRun, Owned, Plan, PodRecord, PodUsage, PodView,
    SandboxConfig, StartRequest, Started, Swept, Syncer,
};

/// The host.
pub struct World {
    layout: Layout,
    syncer: Syncer,
    leases: AtomicUsize,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    /// Each sandbox takes one permit before it fails.
    pub gate: Semaphore,
    /// Each end of a sandbox that is not recovered takes one permit.
    pub ends: Semaphore,
}

impl World {
    /// A host below `dir`.
    pub fn new(dir: &Scratch) -> Arc<World> {
        let world = World {
            layout: Layout::new(dir.0.clone()),
            syncer: Syncer::start(&dir.0).unwrap(),
            leases: AtomicUsize::new(0),
            calls: Mutex::default(),
            gate: Semaphore::new(0),
            ends: Semaphore::new(0),
        };
        std::fs::create_dir_all(world.layout.pods_directory()).unwrap();
        Arc::new(world)
    }

    /// How often the method of that name was called, if it is counted.
    pub fn count(&self, method: &str) -> usize {
        self.calls.lock().unwrap().get(method).copied().unwrap_or(0)
    }

    /// Leased blocks of host ids.
    pub fn leased(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    fn called(&self, method: &'static str) {
        *self.calls.lock().unwrap().entry(method).or_default() += 1;
    }
}

fn absent(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{what}: not in memory"))
}

fn unavailable<'a, T: Send + 'a>(what: &'static str) -> EffectFuture<'a, T> {
    Box::pin(async move { Err(absent(what)) })
}

fn remove(directory: &Path) -> Result<(), Error> {
    let removed = std::fs::remove_dir_all(directory);
    removed.map_err(|error| Error::because(Kind::Io, "remove a directory", error))
}

impl Host for World {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn syncer(&self) -> &Syncer {
        &self.syncer
    }

    fn all_requests_bytes(&self) -> u64 {
        u64::MAX
    }

    fn counts(&self) -> HostCounts {
        HostCounts::default()
    }

    fn egress_refusals(&self, _: Vec<PodId>) -> u64 {
        0
    }

    fn cgroup_parent(&self, requested: &str, pod: &PodId) -> Result<String, Error> {
        Ok(format!("{requested}/{pod}"))
    }

    fn default_cgroup_parent(&self) -> String {
        "/pods".to_owned()
    }

    fn lease_ids(&self) -> Result<IdRange, Error> {
        let base = 65_536 * (self.leases.fetch_add(1, Ordering::AcqRel) as u32 + 1);
        Ok(IdRange { base, size: 65_536 })
    }

    fn claim_ids(&self, _: IdRange) {
        self.leases.fetch_add(1, Ordering::AcqRel);
    }

    fn release_ids(&self, _: IdRange) {
        self.leases.fetch_sub(1, Ordering::AcqRel);
    }

    fn thaw_left(&self, _: &[String]) {}

    fn give_ids(&self, _: &PodId, _: &str, _: IdRange) -> Result<(), Error> {
        self.leases.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn adopt_ids(&self, _: &PodId, _: &str, _: IdRange) {
        self.leases.fetch_add(1, Ordering::AcqRel);
    }

    fn take_back_ids(&self, _: &PodId, _: IdRange) {
        self.leases.fetch_sub(1, Ordering::AcqRel);
    }

    fn lease_level(&self, _: &PodId, _: &SandboxConfig) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn handler_settings(&self, _: &SandboxConfig) -> Option<Box<HandlerSettings>> {
        None
    }

    fn claim_level(&self, _: &str, _: &str) {}

    fn claim_own_level(&self, _: &ContainerId, _: &ContainerConfig) {}

    fn release_level(&self, _: &str) {}

    fn stop_relabels(&self, _: &PodId) {}

    fn forget_relabels(&self, _: &PodId) {}

    fn network_mode(&self) -> String {
        "none".to_owned()
    }

    fn network_problem(self: Arc<Self>) -> BoxFuture<'static, Option<String>> {
        Box::pin(async { None })
    }

    fn create_sandbox<'a>(self: Arc<Self>, _: &'a PodRecord) -> EffectFuture<'a, CreatedSandbox> {
        self.called("create_sandbox");
        Box::pin(async move {
            self.gate.acquire().await.unwrap().forget();
            Err(Error::new(Kind::Exhausted, "no address is left"))
        })
    }

    fn connect<'a>(
        self: Arc<Self>,
        _: &'a PodId,
        _: Duration,
    ) -> EffectFuture<'a, (Keeper, Greeting, Receiver<KeeperEvent>)> {
        unavailable("connect")
    }

    fn commit<'a>(self: Arc<Self>, _: &'a PodId, _: &'a Keeper) -> EffectFuture<'a, ()> {
        unavailable("commit")
    }

    fn tear_down_sandbox<'a>(
        self: Arc<Self>,
        _: &'a PodRecord,
        _: Option<Keeper>,
        _: Option<Arc<Process>>,
    ) -> EffectFuture<'a, ()> {
        self.called("tear_down_sandbox");
        Box::pin(async { Ok(()) })
    }

    fn forget_pod(&self, pod: &PodId) -> Result<(), Error> {
        self.called("forget_pod");
        remove(&self.layout.pod_directory(pod))
    }

    fn prepare_image<'a>(self: Arc<Self>, _: &'a Image, _: &'a str) -> EffectFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn claim_images(&self, _: &ContainerId, _: &Plan) {}

    fn suspend_collection(&self) {}

    fn collect_garbage(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn plan<'a>(
        self: Arc<Self>,
        _: &'a PodRecord,
        _: &'a ContainerId,
        _: &'a Arc<ContainerConfig>,
        _: &'a KeeperEngine,
    ) -> EffectFuture<'a, Plan> {
        unavailable("plan")
    }

    fn build(
        &self,
        _: &PodRecord,
        _: &ContainerId,
        _: &ContainerConfig,
        _: &Plan,
    ) -> Result<(), Error> {
        Err(absent("build"))
    }

    fn start_container(self: Arc<Self>, _: StartRequest) -> EffectFuture<'static, Started> {
        unavailable("start_container")
    }

    fn await_start<'a>(
        self: Arc<Self>,
        _: &'a Keeper,
        _: &'a ContainerId,
    ) -> EffectFuture<'a, Started> {
        unavailable("await_start")
    }

    fn reopen_log<'a>(
        self: Arc<Self>,
        _: &'a Keeper,
        _: &'a ContainerId,
        _: &'a str,
        _: &'a str,
    ) -> EffectFuture<'a, ()> {
        unavailable("reopen_log")
    }

    fn signal(&self, _: &Process, _: i32, _: Option<Duration>) -> Result<(), Error> {
        Ok(())
    }

    fn kill(self: Arc<Self>, _: Option<Arc<Process>>, _: String) -> EffectFuture<'static, ()> {
        Box::pin(async { Ok(()) })
    }

    fn change_limits(&self, _: &Plan, _: &Limits) -> Result<(), Error> {
        Ok(())
    }

    fn oom_kills(&self, _: &str) -> u64 {
        0
    }

    fn exit_code<'a>(
        self: Arc<Self>,
        _: &'a PodId,
        _: &'a ContainerId,
    ) -> BoxFuture<'a, Option<i32>> {
        Box::pin(async { None })
    }

    fn clean_up(self: Arc<Self>, _: String) -> EffectFuture<'static, ()> {
        Box::pin(async { Ok(()) })
    }

    fn run_node_hooks(self: Arc<Self>, _: NodeHookRun) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn drop_exit(&self, _: Option<Keeper>, _: &PodId, _: &ContainerId, _: oneshot::Receiver<()>) {}

    fn forget_container<'a>(
        self: Arc<Self>,
        _: Option<Keeper>,
        pod: &'a PodId,
        id: &'a ContainerId,
        _: String,
    ) -> EffectFuture<'a, ()> {
        self.called("forget_container");
        let removed = remove(&self.layout.container_directory(pod, id));
        Box::pin(async { removed })
    }

    fn exec_sync<'a>(
        self: Arc<Self>,
        _: &'a StartRequest,
        _: Vec<String>,
        _: Option<Duration>,
    ) -> EffectFuture<'a, ExecOutput> {
        unavailable("exec_sync")
    }

    fn exec_stream<'a>(
        self: Arc<Self>,
        _: &'a StartRequest,
        _: ExecConfig,
        _: Streams,
    ) -> EffectFuture<'a, i32> {
        unavailable("exec_stream")
    }

    fn attach<'a>(
        self: Arc<Self>,
        _: &'a StartRequest,
        _: AttachConfig,
        _: Streams,
    ) -> EffectFuture<'a, ()> {
        unavailable("attach")
    }

    fn dial<'a>(self: Arc<Self>, _: &'a PodId, _: bool, _: u16) -> EffectFuture<'a, TcpStream> {
        unavailable("dial")
    }

    fn measure(&self, _: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage> {
        Vec::new()
    }

    fn measure_pods(&self, _: Vec<Measured>) -> Vec<PodUsage> {
        Vec::new()
    }

    fn details(&self, _: &ContainerView, _: Option<ContainerKind>, _: bool) -> Details {
        Details::default()
    }

    fn forget_measures(&self, _: &[Arc<ContainerView>], _: &[Arc<PodView>]) {}

    fn sweep(self: Arc<Self>, _: Owned) -> BoxFuture<'static, Swept> {
        self.called("sweep");
        Box::pin(async { Swept::default() })
    }

    fn sweep_compiled(&self, _: Vec<String>) -> Result<(), Error> {
        Ok(())
    }

    fn has_processes(&self, _: &HashSet<String>) -> bool {
        false
    }

    fn claim_ids_of(&self, _: &HashSet<String>) {}

    fn end_processes(
        self: Arc<Self>,
        _: HashSet<String>,
        _: Option<String>,
    ) -> EffectFuture<'static, ()> {
        Box::pin(async { Ok(()) })
    }

    fn end_unreadable<'a>(
        self: Arc<Self>,
        _: &'a PodId,
        _: HashSet<String>,
        _: Option<String>,
    ) -> EffectFuture<'a, ()> {
        self.called("end_unreadable");
        Box::pin(async move {
            self.ends.acquire().await.unwrap().forget();
            Ok(())
        })
    }

    fn forget_unreadable(&self, _: &PodId, _: &[ContainerId]) -> Result<(), Error> {
        Ok(())
    }

    fn restore_network(self: Arc<Self>, _: Attachment) -> EffectFuture<'static, ()> {
        Box::pin(async { Ok(()) })
    }

    fn retire(&self) {}
}
