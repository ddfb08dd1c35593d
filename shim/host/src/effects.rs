//! Implements the lifecycle's trait for this host: each effect calls the host's method of the same name.
//!
//! Called by: drivers, recovery, sessions and usage, through the trait. Invariant: nothing is decided here.
//! Must not know: how an effect is carried out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Limits;
use coracle_control::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_control::process::Process;
use coracle_images::Image;
use coracle_lifecycle::{
    AttachConfig, ContainerConfig, ContainerKind, ContainerUsage, ContainerView, CreatedSandbox,
    Details, EffectFuture, Error, ExecConfig, ExecOutput, HandlerSettings, HostCounts,
    KeeperEngine, Layout, Measured, NodeHookRun, Owned, Plan, PodRecord, PodUsage, PodView,
    SandboxConfig, StartRequest, Started, Swept, Syncer,
};
use coracle_network::Attachment;
use coracle_spec::IdRange;
use coracle_spec::id::{ContainerId, PodId};
use coracle_streaming::Streams;
use futures_channel::mpsc::Receiver;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::{Instrument as _, info_span};

use super::Host;

impl coracle_lifecycle::Host for Host {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn syncer(&self) -> &Syncer {
        Host::syncer(self)
    }

    fn cgroup_parent(&self, requested: &str, pod: &PodId) -> Result<String, Error> {
        Host::cgroup_parent(self, requested, pod)
    }

    fn default_cgroup_parent(&self) -> String {
        Host::default_cgroup_parent(self)
    }

    fn all_requests_bytes(&self) -> u64 {
        self.config.all_requests_bytes
    }

    fn counts(&self) -> HostCounts {
        Host::counts(self)
    }

    fn egress_refusals(&self, pods: Vec<PodId>) -> u64 {
        Host::egress_refusals(self, pods)
    }

    fn lease_ids(&self) -> Result<IdRange, Error> {
        self.ids.lease()
    }

    fn claim_ids(&self, range: IdRange) {
        self.ids.claim(range);
    }

    fn release_ids(&self, range: IdRange) {
        self.ids.release(range);
    }

    fn thaw_left(&self, cgroups: &[String]) {
        Host::thaw_left(self, cgroups);
    }

    fn give_ids(&self, pod: &PodId, uid: &str, range: IdRange) -> Result<(), Error> {
        self.ids.give(pod, uid, range)
    }

    fn adopt_ids(&self, pod: &PodId, uid: &str, range: IdRange) {
        self.ids.adopt(pod, uid, range);
    }

    fn take_back_ids(&self, pod: &PodId, range: IdRange) {
        self.ids.take_back(pod, range);
    }

    fn lease_level(&self, pod: &PodId, config: &SandboxConfig) -> Result<Option<String>, Error> {
        Host::lease_level(self, pod, config)
    }

    fn handler_settings(&self, config: &SandboxConfig) -> Option<Box<HandlerSettings>> {
        let named = (!config.handler_name.is_empty()).then_some(config.shown_handler())?;
        let live = self.config.live.get();
        live.handlers.get(named).cloned().map(Box::new)
    }

    fn claim_level(&self, holder: &str, level: &str) {
        self.categories.claim(holder, level);
    }

    fn claim_own_level(&self, id: &ContainerId, config: &ContainerConfig) {
        Host::claim_own_level(self, id, config);
    }

    fn release_level(&self, holder: &str) {
        self.categories.release(holder);
    }

    fn stop_relabels(&self, pod: &PodId) {
        self.relabels.stop(pod);
    }

    fn forget_relabels(&self, pod: &PodId) {
        self.relabels.forget(pod);
    }

    fn network_mode(&self) -> String {
        self.parts.network.mode()
    }

    fn network_problem(self: Arc<Self>) -> BoxFuture<'static, Option<String>> {
        Box::pin(async move { Host::network_problem(&self).await })
    }

    fn create_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
    ) -> EffectFuture<'a, CreatedSandbox> {
        Box::pin(async move { Host::create_sandbox(&self, record).await })
    }

    fn connect<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        timeout: Duration,
    ) -> EffectFuture<'a, (Keeper, Greeting, Receiver<KeeperEvent>)> {
        Box::pin(async move { Host::connect(&self, pod, timeout).await })
    }

    fn commit<'a>(self: Arc<Self>, pod: &'a PodId, keeper: &'a Keeper) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::commit(&self, pod, keeper).await })
    }

    fn tear_down_sandbox<'a>(
        self: Arc<Self>,
        record: &'a PodRecord,
        keeper: Option<Keeper>,
        process: Option<Arc<Process>>,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::tear_down_sandbox(&self, record, keeper, process).await })
    }

    fn forget_pod(&self, pod: &PodId) -> Result<(), Error> {
        Host::forget_pod(self, pod)
    }

    fn prepare_image<'a>(
        self: Arc<Self>,
        image: &'a Image,
        namespace: &'a str,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::prepare_image(&self, image, namespace).await })
    }

    fn claim_images(&self, holder: &ContainerId, plan: &Plan) {
        Host::claim_images(self, holder, plan);
    }

    fn suspend_collection(&self) {
        self.parts.images.suspend_collection();
    }

    fn collect_garbage(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(Host::collect_garbage(self))
    }

    fn plan<'a>(
        self: Arc<Self>,
        pod: &'a PodRecord,
        id: &'a ContainerId,
        config: &'a Arc<ContainerConfig>,
        engine: &'a KeeperEngine,
    ) -> EffectFuture<'a, Plan> {
        let span = info_span!(target: "otel", "container.plan");
        Box::pin(async move { Host::plan(&self, pod, id, config, engine).await }.instrument(span))
    }

    fn build(
        &self,
        pod: &PodRecord,
        id: &ContainerId,
        config: &ContainerConfig,
        plan: &Plan,
    ) -> Result<(), Error> {
        Host::build(self, pod, id, config, plan)
    }

    fn start_container(self: Arc<Self>, request: StartRequest) -> EffectFuture<'static, Started> {
        Box::pin(async move { Host::start(&self, request).await })
    }

    fn await_start<'a>(
        self: Arc<Self>,
        keeper: &'a Keeper,
        container: &'a ContainerId,
    ) -> EffectFuture<'a, Started> {
        Box::pin(async move { Host::await_launch(&self, keeper, container).await })
    }

    fn reopen_log<'a>(
        self: Arc<Self>,
        keeper: &'a Keeper,
        id: &'a ContainerId,
        log_directory: &'a str,
        path: &'a str,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::reopen_log(&self, keeper, id, log_directory, path).await })
    }

    fn signal(&self, process: &Process, signal: i32, grace: Option<Duration>) -> Result<(), Error> {
        Host::signal(self, process, signal, grace)
    }

    fn kill(
        self: Arc<Self>,
        process: Option<Arc<Process>>,
        cgroup: String,
    ) -> EffectFuture<'static, ()> {
        Box::pin(async move { Host::kill(&self, process.as_deref(), &cgroup).await })
    }

    fn change_limits(&self, plan: &Plan, change: &Limits) -> Result<(), Error> {
        Host::change_limits(self, plan, change)
    }

    fn oom_kills(&self, cgroup: &str) -> u64 {
        Host::oom_kills(self, cgroup)
    }

    fn exit_code<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        id: &'a ContainerId,
    ) -> BoxFuture<'a, Option<i32>> {
        Box::pin(async move { Host::exit_code(&self, pod, id).await })
    }

    fn clean_up(self: Arc<Self>, cgroup: String) -> EffectFuture<'static, ()> {
        Box::pin(async move { Host::clean_up(&self, &cgroup).await })
    }

    fn run_node_hooks(self: Arc<Self>, hooks: NodeHookRun) -> BoxFuture<'static, ()> {
        Box::pin(async move { Host::run_node_hooks(&self, &hooks).await })
    }

    fn drop_exit(
        &self,
        keeper: Option<Keeper>,
        pod: &PodId,
        id: &ContainerId,
        recorded: oneshot::Receiver<()>,
    ) {
        Host::drop_exit(self, keeper, pod, id, recorded);
    }

    fn forget_container<'a>(
        self: Arc<Self>,
        keeper: Option<Keeper>,
        pod: &'a PodId,
        id: &'a ContainerId,
        cgroup: String,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::forget_container(&self, keeper, pod, id, cgroup).await })
    }

    fn exec_sync<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> EffectFuture<'a, ExecOutput> {
        Box::pin(async move { Host::exec_sync(&self, request, argv, limit).await })
    }

    fn exec_stream<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        config: ExecConfig,
        streams: Streams,
    ) -> EffectFuture<'a, i32> {
        Box::pin(async move { Host::exec_stream(&self, request, config, streams).await })
    }

    fn attach<'a>(
        self: Arc<Self>,
        request: &'a StartRequest,
        config: AttachConfig,
        streams: Streams,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::attach(&self, request, config, streams).await })
    }

    fn dial<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        on_node: bool,
        port: u16,
    ) -> EffectFuture<'a, TcpStream> {
        Box::pin(async move { Host::dial(&self, pod, on_node, port).await })
    }

    fn measure(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage> {
        Host::measure(self, containers)
    }

    fn measure_pods(&self, pods: Vec<Measured>) -> Vec<PodUsage> {
        Host::measure_pods(self, pods)
    }

    fn details(
        &self,
        container: &ContainerView,
        kind: Option<ContainerKind>,
        open_files: bool,
    ) -> Details {
        Host::details(self, container, kind, open_files)
    }

    fn forget_measures(&self, containers: &[Arc<ContainerView>], pods: &[Arc<PodView>]) {
        Host::forget_measures(self, containers, pods);
    }

    fn sweep(self: Arc<Self>, owned: Owned) -> BoxFuture<'static, Swept> {
        Box::pin(async move { Host::sweep(&self, owned).await })
    }

    fn sweep_compiled(&self, hashes: Vec<String>) -> Result<(), Error> {
        Host::sweep_compiled(self, hashes)
    }

    fn has_processes(&self, ids: &HashSet<String>) -> bool {
        Host::has_processes(self, ids)
    }

    fn claim_ids_of(&self, ids: &HashSet<String>) {
        Host::claim_ids_of(self, ids);
    }

    fn end_processes(
        self: Arc<Self>,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> EffectFuture<'static, ()> {
        Box::pin(async move { Host::end_processes(&self, ids, parent).await })
    }

    fn end_unreadable<'a>(
        self: Arc<Self>,
        pod: &'a PodId,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move { Host::end_unreadable(&self, pod, ids, parent).await })
    }

    fn forget_unreadable(&self, pod: &PodId, containers: &[ContainerId]) -> Result<(), Error> {
        Host::forget_unreadable(self, pod, containers)
    }

    fn restore_network(self: Arc<Self>, attachment: Attachment) -> EffectFuture<'static, ()> {
        Box::pin(async move { Host::restore_network(&self, attachment).await })
    }

    fn retire(&self) {
        Host::retire(self);
    }
}
