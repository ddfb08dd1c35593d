//! Runs one pod: takes messages from its mailbox, decides with `step` and `pod_step`, saves, then acts.
//!
//! ```text
//! Pods --Request--> mailbox --> step --> save --> effect (a task of its own) --Completion--> mailbox
//!                             \--> StateCache (what lists show), answers to whoever waits
//! ```
//! Called by: [`super::Pods`], recovery. Calls: [`Host`], the records of [`super::store`], [`StateCache`].
//! Invariants: one task a pod, so nothing here takes a lock; a phase is on disk before its effects run, and effects
//! can be repeated; the task itself never waits for a process or a mount: effects and their deadlines run
//! beside it, and a grace period is an armed deadline. A removal is not saved: its first step erases the record.
//! Must not know: gRPC, Wasm, mounts. A driver knows *that* a container starts, never *how*.

mod answers;
mod container;
mod effects;
mod inspect;
mod keeper;
mod message;
mod plugins;
mod pod;
mod report;
mod requests;
mod resume;
pub mod unreadable;
mod update;
mod wait;

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_control::keeper::{Keeper, KeeperEvent};
use coracle_control::process::Process;
use coracle_metrics::Held;
use coracle_spec::id::ContainerId;
use coracle_streaming::Share;
use futures_channel::mpsc::{Receiver, UnboundedReceiver, unbounded};
use futures_util::FutureExt as _;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{Instrument as _, Span};

use super::config::{ContainerConfig, Resources};
use super::error::{Error, Kind};
use super::history::History;
use super::record::{Plan, PodRecord};
use super::registry::NameRegistry;
use super::requests::Requests;
use super::state::{ContainerPhase, PodPhase, Then};
use super::store::Slot;
use super::view::StateCache;
use super::work::Work;
use crate::host::Host;
use crate::host_ids;
use crate::plugins::Plugins;

pub use inspect::Inspection;
pub use message::{
    Completion, Connection, Created, Mailbox, Message, Origin, Purpose, ReadySandbox, Reply,
    Request,
};
pub use plugins::PodRecords;
pub use resume::{FoundKeeper, Resumed};
use wait::{Watch, next_event, save, sleep_until};

/// State that all drivers share.
pub struct Shared {
    /// Effects on the host.
    pub host: Arc<dyn Host>,
    /// Who takes part in what happens.
    pub plugins: Arc<dyn Plugins>,
    /// What happened lately.
    pub history: History,
    /// The snapshots that lists and status answer from.
    pub cache: StateCache,
    /// Memory that requests occupy, and its limit.
    pub requests: Requests,
    /// Routes names and ids to drivers.
    pub registry: NameRegistry<Mailbox>,
    /// Effects under way.
    pub work: Arc<Work>,
    /// The id of this boot.
    pub boot: String,
}

impl Shared {
    /// A handle of the host, for an effect that outlives the call.
    pub fn host(&self) -> Arc<dyn Host> {
        Arc::clone(&self.host)
    }
}

/// One container, as its driver sees it.
pub struct Container {
    id: ContainerId,
    config: Arc<ContainerConfig>,
    /// The request as it came, if plugins changed it.
    requested: Option<Box<ContainerConfig>>,
    /// `None` until it is planned.
    plan: Option<Arc<Plan>>,
    /// Accounts for the memory of its request, or of all of its record if it was taken over.
    _share: Share,
    /// Accounts for the memory of its plan, once it has one.
    plan_share: Option<Share>,
    created_at: i64,
    phase: ContainerPhase,
    /// When it came into this phase, or was taken over in it.
    since: Instant,
    slot: Slot,
    /// `None` unless it runs; may be `None` for a running one that was taken over from an earlier daemon.
    process: Option<Arc<Process>>,
    watch: Option<Watch>,
    /// An exit that the keeper reported before the start was complete.
    early_exit: Option<coracle_spec::Exit>,
    /// Effects under way.
    busy: usize,
    /// Why its creation failed.
    failure: Option<Error>,
    waiting: Waiting,
}

impl Container {
    /// A container without a process and without waiting requests.
    fn new(
        id: ContainerId,
        config: Arc<ContainerConfig>,
        share: Share,
        slot: Slot,
        created_at: i64,
    ) -> Container {
        Container {
            id,
            config,
            requested: None,
            plan: None,
            _share: share,
            plan_share: None,
            created_at,
            phase: ContainerPhase::Creating(Then::Keep),
            since: Instant::now(),
            slot,
            process: None,
            watch: None,
            early_exit: None,
            busy: 0,
            failure: None,
            waiting: Waiting::default(),
        }
    }
}

/// Requests that wait for a container to change its phase.
#[derive(Default)]
struct Waiting {
    create: Vec<Reply<ContainerId>>,
    start: Vec<Reply<()>>,
    stop: Vec<Reply<()>>,
    remove: Vec<Reply<()>>,
    /// Changes of its limits, in the order of the requests; the first one is under way.
    update: VecDeque<(Resources, Origin, Reply<()>)>,
}

/// The effect on the pod that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// None.
    Idle,
    /// One is under way.
    Busy,
    /// The last one failed; the next request tries again.
    Failed,
}

/// The task of one pod.
pub struct Driver {
    shared: Arc<Shared>,
    sender: Mailbox,
    mailbox: UnboundedReceiver<Message>,
    record: PodRecord,
    /// When it came into this phase, or was taken over in it.
    since: Instant,
    /// Accounts for the memory of its request.
    _share: Share,
    slot: Slot,
    keeper: Option<Keeper>,
    events: Option<Receiver<KeeperEvent>>,
    keeper_process: Option<Arc<Process>>,
    /// Counts it.
    keeper_counted: Option<Held>,
    keeper_watch: Option<Watch>,
    /// Tries to reconnect to a keeper that does not answer.
    calling: Option<Watch>,
    /// Waits before unusable records are read again.
    reading: Option<Watch>,
    /// How long it waits next time.
    reading_pause: Duration,
    /// Containers with a directory but no record, which the sweep at the start removes.
    dead: Vec<ContainerId>,
    engine_hash: String,
    /// The span of the request that is handled; its effects belong to that trace.
    cause: Span,
    /// What plugins are still to be told; `None` before the first event.
    notices: Option<UnboundedSender<plugins::Notice>>,
    /// The number of the last event among them.
    notified: u64,
    /// Plugins know that the pod is stopped.
    notified_of_stop: bool,
    containers: BTreeMap<ContainerId, Container>,
    progress: Progress,
    /// Why its creation failed.
    failure: Option<Error>,
    ready: Vec<Reply<()>>,
    stop: Vec<Reply<()>>,
    remove: Vec<Reply<()>>,
}

impl Driver {
    /// A new mailbox: the sender, and the receiver that a driver reads.
    pub fn mailbox() -> (Mailbox, UnboundedReceiver<Message>) {
        unbounded()
    }

    /// A driver that has not started.
    pub fn new(
        shared: Arc<Shared>,
        record: PodRecord,
        slot: Slot,
        share: Share,
        mail: (Mailbox, UnboundedReceiver<Message>),
    ) -> Driver {
        Driver {
            shared,
            sender: mail.0,
            mailbox: mail.1,
            record,
            since: Instant::now(),
            _share: share,
            slot,
            keeper: None,
            events: None,
            keeper_process: None,
            keeper_counted: None,
            keeper_watch: None,
            calling: None,
            reading: None,
            reading_pause: unreadable::FIRST_PAUSE,
            dead: Vec::new(),
            engine_hash: String::new(),
            cause: Span::none(),
            notices: None,
            notified: 0,
            notified_of_stop: false,
            containers: BTreeMap::new(),
            progress: Progress::Idle,
            failure: None,
            ready: Vec::new(),
            stop: Vec::new(),
            remove: Vec::new(),
        }
    }

    /// Creates a new pod, in the trace of `cause`, and drives it until it is gone.
    pub async fn begin(mut self, cause: Span) {
        let span = self.span();
        self.cause = cause;
        span.in_scope(|| self.create_pod());
        self.run().await;
    }

    /// Drives the pod until it is gone.
    pub async fn run(self) {
        let span = self.span();
        self.drive().instrument(span).await;
    }

    async fn drive(mut self) {
        self.reconcile().await;
        self.cause = Span::none();
        while self.record.phase != PodPhase::Gone {
            let deadline = self
                .containers
                .values()
                .filter_map(|container| container.phase.deadline())
                .min();
            tokio::select! {
                // This task holds a sender, so the mailbox does not close while it runs.
                Ok(message) = self.mailbox.recv() => self.handle_message(message).await,
                event = next_event(&mut self.events) => self.handle_keeper_event(event).await,
                () = sleep_until(deadline) => self.pass_deadlines().await,
            }
            self.reconcile().await;
            self.cause = Span::none();
        }
        self.end();
    }

    async fn handle_message(&mut self, message: Message) {
        match message {
            Message::Request(request, cause) => {
                self.cause = cause;
                self.handle_request(request).await;
            }
            Message::Container(id, completion) => self.handle_completion(id, completion).await,
            Message::SandboxCreated(result) => self.created(result).await,
            Message::TornDown(result) => self.torn_down(result).await,
            Message::PodForgotten(result) => self.pod_forgotten(result).await,
            Message::KeeperEnded => self.keeper_ended().await,
            Message::Reconnected(connection) => self.connected(*connection).await,
            Message::ReadAgain => self.read_again().await,
        }
    }

    async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Ready(config, reply) => self.handle_ready(&config, reply),
            Request::StopPod(reply) => self.handle_stop_pod(reply).await,
            Request::RemovePod(reply) => self.handle_remove_pod(reply).await,
            Request::Create(config, reply) => self.handle_create(config, reply),
            Request::Start(id, reply) => self.handle_start(id, reply).await,
            Request::Stop(id, grace, reply) => self.handle_stop(id, grace, reply).await,
            Request::Remove(id, reply) => self.handle_remove(id, reply).await,
            Request::ReopenLog(id, reply) => self.handle_reopen_log(&id, reply),
            Request::Enter(id, purpose, reply) => drop(reply.send(self.entry(&id, purpose))),
            Request::Inspect(reply) => drop(reply.send(Ok(self.inspect()))),
            Request::Records(reply) => drop(reply.send(Ok(self.records()))),
            Request::Update(id, requested, origin, reply) => {
                self.handle_update(&id, requested, origin, reply);
            }
        }
    }

    /// Starts the next steps that follow from the last change without another request.
    async fn reconcile(&mut self) {
        self.reconcile_containers();
        self.reconcile_pod().await;
        self.answer_pod();
    }

    /// Releases names and ids, and answers the requests that still wait: the sandbox is gone.
    fn end(mut self) {
        self.mailbox.close();
        host_ids::release(self.shared.host.as_ref(), &self.record);
        let id = &self.record.id;
        self.shared.host.release_level(id.as_str());
        self.shared.host.forget_relabels(id);
        self.shared
            .registry
            .release(&self.record.config.name, &self.record.id);
        self.answer_pod();
        tracing::info!("sandbox gone");
    }

    /// Runs an effect in a task of its own, which sends the result to the mailbox.
    fn effect<T: Send + 'static>(
        &self,
        effect: impl Future<Output = Result<T, Error>> + Send + 'static,
        message: impl FnOnce(Result<T, Error>) -> Message + Send + 'static,
    ) {
        let (sender, work) = (self.sender.clone(), self.shared.work.begin());
        let task = async move {
            let result = AssertUnwindSafe(effect)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| {
                    Err(Error::new(
                        Kind::Bug,
                        "an effect panicked; the daemon's log has its message",
                    ))
                });
            drop(work);
            // Err: the driver has ended, which it does only when no message can follow.
            let _ = sender.unbounded_send(message(result));
        };
        tokio::spawn(task.in_current_span().instrument(self.cause.clone()));
    }

    /// Runs `watch` in a task of its own until it yields a message or the handle is dropped.
    fn watch(&self, watch: impl Future<Output = Message> + Send + 'static) -> Watch {
        let sender = self.sender.clone();
        let task = async move {
            let message = watch.await;
            let _ = sender.unbounded_send(message);
        };
        Watch::of(tokio::spawn(task.in_current_span()).abort_handle())
    }
}
