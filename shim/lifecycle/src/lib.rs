//! Pods and their containers: [`Pods`] is the handle through which the CRI layer changes and reads them.
//!
//! ```text
//! cri/* --Pods--> mailbox --> driver (one task a pod) --state::step--> store --> host (effects)
//!   ^                                                                              |
//!   +--------------- StateCache (snapshots, events) <-----------------------------------+
//! ```
//! Invariants: a caller that goes away loses its answer, the work continues; lists and status come from a `StateCache`
//! and wait for nothing; an operation reserves a name and releases it, and a retry joins the first try.
//! Must not know: CRI messages, gRPC codes, how an effect is carried out: [`Host`] is a trait, which tests implement in
//! memory.

mod blocking;
mod check;
mod clock;
mod config;
pub mod counters;
mod disk;
mod driver;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod generations;
mod history;
mod host;
mod host_ids;
mod inspect;
mod layout;
pub mod limits;
mod numbers;
mod plugins;
mod record;
mod recover;
mod registry;
mod requests;
#[cfg(test)]
#[path = "../../src/scratch.rs"]
mod scratch;
mod sessions;
mod state;
mod store;
mod syncer;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
mod turns;
mod unreadable;
mod unrecovered;
mod updates;
mod usage;
mod view;
mod work;

pub use blocking::{blocking, io_error, make_private, pass, runtime_error};
pub use config::{
    Annotations, AttachConfig, CapabilityConfig, ContainerConfig, ContainerName, DeviceConfig, Dns,
    ExecConfig, Grants, GroupsPolicy, Handler, HandlerSettings, HttpConfig, IdMapping, ImageVolume,
    MountConfig, NamespaceMode, Namespaces, PidNamespaceConfig, PodName, PortForwardConfig,
    Propagation, Resources, SandboxConfig, SecurityContext, SecurityProfile, SelinuxOptions,
    UserConfig, UserNamespaceConfig, WasmVariant,
};
pub use error::{Error, Kind};
pub use history::HistoryEntry;
pub use host::{
    CreatedSandbox, EffectFuture, ExecOutput, GREETING_TIMEOUT, Host, HostCounts, KeeperEngine,
    NodeHookRun, Owned, StartRequest, Started, Swept,
};
pub use inspect::RoundTrip;
pub use layout::Layout;
pub use plugins::{Adjusted, NoPlugins, PluginEvent, PluginEventKind, Plugins};
pub use record::{
    ContainerRecord, LinuxPlan, NetDevice, Payload, Plan, PodRecord, SeccompPlan, WasmPlan,
};
pub use store::{Slot, quarantine};
pub use syncer::Syncer;
pub use usage::{
    ContainerUsage, Details, Interface, LayerUsage, Measured, OpenFiles, PodDetails, PodUsage,
    Traffic, Usage,
};
pub use view::{ContainerKind, ContainerState, ContainerView, Event, EventKind, PodView};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_images::Image;
use coracle_spec::id::{ContainerId, PodId};
use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, oneshot};
use tracing::{Span, info_span};

use driver::{Driver, Mailbox, Message, Reply, Request, Shared};
pub use driver::{Inspection, PodRecords, Purpose};
use history::History;
use registry::{Claim, NameRegistry};
use requests::Requests;
use state::PodPhase;
use view::StateCache;
use work::Work;

/// All pods of this node. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    shared: Arc<Shared>,
    draining: Arc<AtomicBool>,
}

impl Pods {
    /// Reads the records, takes over what lives, sweeps what has no owner, then takes requests.
    /// Errors: the state directory cannot be read. A pod whose records cannot be used is left as it is and read again.
    pub fn open(
        host: Arc<dyn Host>,
        plugins: Arc<dyn Plugins>,
    ) -> BoxFuture<'static, Result<Pods, Error>> {
        // Boxed so that recovery and drivers are compiled with this crate: the code of an async function is compiled
        // where it is awaited.
        Box::pin(Self::recover(host, plugins))
    }

    async fn recover(host: Arc<dyn Host>, plugins: Arc<dyn Plugins>) -> Result<Pods, Error> {
        let boot = clock::boot_id().map_err(|error| io_error("read the boot id", error))?;
        let shared = Arc::new(Shared {
            requests: Requests::new(host.all_requests_bytes()),
            host,
            plugins,
            history: History::new(),
            cache: StateCache::new(),
            registry: NameRegistry::new(),
            work: Arc::new(Work::default()),
            boot,
        });
        let recovered = recover::recover(&shared).await?;
        for driver in recovered.drivers {
            tokio::spawn(driver.run());
        }
        for pod in recovered.unrecovered {
            tokio::spawn(pod.run());
        }
        // Every container has leased its images by now.
        tokio::spawn(shared.host().collect_garbage());
        Ok(Pods {
            shared,
            draining: Arc::default(),
        })
    }

    /// Creates a sandbox; returns when it is ready. A retry of the same request gets the result of the first one.
    /// Errors: Invalid, Draining; NameTaken when another request holds the name; Exhausted; errors of the node.
    pub async fn run_pod(&self, config: SandboxConfig) -> Result<PodId, Error> {
        self.refuse_when_draining()?;
        check::check_sandbox(&config)?;
        let config = Arc::new(config);
        let id = PodId::random().map_err(|error| io_error("draw a sandbox id", error))?;
        let mail = Driver::mailbox();
        let (id, mailbox) = match self
            .shared
            .registry
            .claim(&config.name, &id, mail.0.clone())
        {
            Claim::Held(first, mailbox) => (first, mailbox),
            Claim::Taken => {
                let mailbox = mail.0.clone();
                if let Err(error) = self.begin(&id, &config, mail) {
                    self.shared.registry.release(&config.name, &id);
                    return Err(error);
                }
                (id, mailbox)
            }
        };
        send_request(&mailbox, |reply| Request::Ready(config, reply))
            .await
            .map(|()| id)
    }

    fn begin(
        &self,
        id: &PodId,
        config: &Arc<SandboxConfig>,
        mail: (Mailbox, futures_channel::mpsc::UnboundedReceiver<Message>),
    ) -> Result<(), Error> {
        let host = &self.shared.host;
        let namespace = &config.name.namespace;
        let share = self.shared.requests.take(namespace, config.as_ref());
        let share = share.map_err(|error| {
            Error::because(error.kind(), format!("sandbox {}", config.name), error)
        })?;
        let cgroup_parent = host.cgroup_parent(&config.cgroup_parent, id)?;
        let selinux_level = host.lease_level(id, config)?;
        let range = host_ids::take(host.as_ref(), id, config);
        let record = PodRecord {
            id: id.clone(),
            config: Arc::clone(config),
            created_at: clock::wall(),
            boot: self.shared.boot.clone(),
            cgroup_parent,
            range: range.inspect_err(|_| host.release_level(id.as_str()))?,
            selinux_level,
            handler_settings: host.handler_settings(config),
            phase: PodPhase::Starting,
        };
        let slot = Slot::new(host.layout().pod_directory(id), host.syncer());
        let driver = Driver::new(Arc::clone(&self.shared), record, slot, share, mail);
        tokio::spawn(driver.begin(driver_span()));
        Ok(())
    }

    /// Ends all its containers and tears its network down; a stopped sandbox is fine. Errors: Missing when absent.
    pub async fn stop_pod(&self, id: &PodId) -> Result<(), Error> {
        send_request(&self.pod_mailbox(id)?, Request::StopPod).await
    }

    /// Stops and removes it with all its containers. Errors: Missing when absent.
    pub async fn remove_pod(&self, id: &PodId) -> Result<(), Error> {
        send_request(&self.pod_mailbox(id)?, Request::RemovePod).await
    }

    /// Creates a container; its image must be on the node. A retry of the same request gets the result of the first
    /// one.
    /// Errors: Missing (sandbox, image), WrongPhase, NameTaken, Invalid, Unsupported, Draining.
    pub async fn create_container(
        &self,
        pod: &PodId,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        self.refuse_when_draining()?;
        send_request(&self.pod_mailbox(pod)?, |reply| {
            Request::Create(Arc::new(config), reply)
        })
        .await
    }

    /// Starts a created container; returns when it runs. Errors: Missing; WrongPhase in any other phase; StartFailed
    /// when its jail or program failed, after which it has exited with reason `StartError`.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::Start(id.clone(), reply)
        })
        .await
    }

    /// Sends the stop signal, and kills it after `grace`; returns when it has ended. A later call can only shorten the
    /// grace.
    /// Errors: Missing when absent.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::Stop(id.clone(), grace, reply)
        })
        .await
    }

    /// Kills it if it runs, then removes it. Errors: Missing when absent.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::Remove(id.clone(), reply)
        })
        .await
    }

    /// Runs `argv` in it and returns the result; takes at most `limit`, if there is one.
    /// Errors: Missing; WrongPhase unless it runs; StartFailed when there is no such program; Deadline.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let request = self.enter(id, Purpose::Exec).await?;
        self.shared.host().exec_sync(&request, argv, limit).await
    }

    /// Reopens its log file after the kubelet renamed the old one. Errors: WrongPhase when it does not run.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::ReopenLog(id.clone(), reply)
        })
        .await
    }

    /// The sandbox with the full id or unique prefix `text`. Errors: Missing; Invalid when several match.
    pub fn find_pod(&self, text: &str) -> Result<PodId, Error> {
        only("sandbox", text, self.shared.cache.pods_like(text))
    }

    /// The container with the full id or unique prefix `text`. Errors: Missing; Invalid when several match.
    pub fn find_container(&self, text: &str) -> Result<ContainerId, Error> {
        only("container", text, self.shared.cache.containers_like(text))
    }

    /// All sandboxes, from memory.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.shared.cache.pods()
    }

    /// One sandbox, from memory.
    pub fn pod(&self, id: &PodId) -> Option<Arc<PodView>> {
        self.shared.cache.pod(id)
    }

    /// All containers, from memory.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.shared.cache.containers()
    }

    /// One container, from memory.
    pub fn container(&self, id: &ContainerId) -> Option<Arc<ContainerView>> {
        self.shared.cache.container(id)
    }

    /// The containers of one sandbox, from memory.
    pub fn containers_of(&self, pod: &PodId) -> Vec<Arc<ContainerView>> {
        self.shared.cache.containers_of(pod)
    }

    /// A stream of events from now on; a receiver that lags loses the oldest and gets an error with their number.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.shared.cache.subscribe()
    }

    /// Compiles a Wasm image's module into the cache, so that CreateContainer finds it, in the turn of `namespace`, which is
    /// empty if nobody knows it. Called after PullImage.
    /// Errors: Invalid when the engine refuses the module; Exhausted when the compiler hit a limit.
    pub async fn prepare_image(&self, image: &Image, namespace: &str) -> Result<(), Error> {
        self.shared.host().prepare_image(image, namespace).await
    }

    /// Refuses new sandboxes and containers from now on (Draining) and waits, at most `limit`, for work under way.
    pub async fn drain(&self, limit: Duration) {
        self.draining.store(true, Ordering::Release);
        let idle = tokio::time::timeout(limit, self.shared.work.idle());
        if idle.await.is_err() {
            tracing::warn!("work is still under way; the next daemon finishes or undoes it");
        }
        recover::retire(&self.shared, limit).await;
    }

    /// Waits, at most `limit`, until all records are on the disk.
    pub async fn flush(&self, limit: Duration) {
        let flushed = self.shared.host.syncer().flush();
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::warn!("the disk is slow; a power loss now may cost the newest records");
        }
    }

    fn refuse_when_draining(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Error::new(
                Kind::Draining,
                "the daemon is about to end; ask its successor",
            ));
        }
        Ok(())
    }

    fn pod_mailbox(&self, id: &PodId) -> Result<Mailbox, Error> {
        let absent = || Error::new(Kind::Missing, format!("there is no sandbox {id}"));
        self.shared.registry.pod(id).ok_or_else(absent)
    }

    fn container_mailbox(&self, id: &ContainerId) -> Result<Mailbox, Error> {
        let absent = || Error::new(Kind::Missing, format!("there is no container {id}"));
        self.shared.registry.container(id).ok_or_else(absent)
    }
}

/// Sends a request to a driver's mailbox and waits for the answer; dropping this drops only the answer.
async fn send_request<T>(
    mailbox: &Mailbox,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Error> {
    let (reply, answer) = oneshot::channel();
    // A driver ends only when its pod is gone.
    let gone = || Error::new(Kind::Missing, "its sandbox was removed meanwhile");
    mailbox
        .unbounded_send(Message::Request(request(reply), driver_span()))
        .map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// What a driver does for the call in whose trace this is; nothing outside of one.
fn driver_span() -> Span {
    info_span!(target: "otel", "driver")
}

fn only<T>(what: &str, text: &str, mut found: Vec<T>) -> Result<T, Error> {
    match (found.pop(), found.is_empty()) {
        (Some(id), true) if !text.is_empty() => Ok(id),
        (Some(_), _) if !text.is_empty() => Err(Error::new(
            Kind::Invalid,
            format!("several {what} ids begin with {text:?}; give more of it"),
        )),
        _ => Err(Error::new(
            Kind::Missing,
            format!("there is no {what} {text:?}"),
        )),
    }
}
