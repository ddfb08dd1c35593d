//! The messages of a driver's mailbox: requests, and completions of effects.
//!
//! Sent by: [`crate::Pods`] (requests), effects and watches (completions). Invariant: when the sender of a request has
//! gone, its answer is dropped. Must not know: what follows from a message.

use std::sync::Arc;
use std::time::Duration;

use coracle_control::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_spec::Exit;
use coracle_spec::id::ContainerId;
use coracle_streaming::Share;
use futures_channel::mpsc::{Receiver, UnboundedSender};
use tokio::sync::oneshot;
use tracing::Span;

use super::inspect::Inspection;
use super::plugins::PodRecords;
use super::update::Changed;
use crate::config::{ContainerConfig, Resources, SandboxConfig};
use crate::error::Error;
use crate::host::{CreatedSandbox, StartRequest, Started};
use crate::record::Plan;
use crate::state::Live;
use crate::store::Slot;

/// The sender of an answer.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;
/// The sender of messages. Its channel has memory for those under way only: one of tokio has it for 32 from the start.
pub type Mailbox = UnboundedSender<Message>;

/// One message.
pub enum Message {
    /// A request of the kubelet, and the span of its trace.
    Request(Request, Span),
    /// The pod was created and recorded as ready, or all of it was undone.
    SandboxCreated(Result<Box<ReadySandbox>, Error>),
    /// Keeper, network and cgroup are gone.
    TornDown(Result<(), Error>),
    /// The pod's records are gone.
    PodForgotten(Result<(), Error>),
    /// The keeper's process has ended.
    KeeperEnded,
    /// A new connection to a keeper that had hung up.
    Reconnected(Box<Connection>),
    /// The pause before unusable records are read again is over.
    ReadAgain,
    /// A change of one container.
    Container(ContainerId, Completion),
}

/// A request.
pub enum Request {
    /// RunPodSandbox: the first try and its retries.
    Ready(Arc<SandboxConfig>, Reply<()>),
    /// StopPodSandbox.
    StopPod(Reply<()>),
    /// RemovePodSandbox.
    RemovePod(Reply<()>),
    /// CreateContainer.
    Create(Arc<ContainerConfig>, Reply<ContainerId>),
    /// StartContainer.
    Start(ContainerId, Reply<()>),
    /// StopContainer.
    Stop(ContainerId, Duration, Reply<()>),
    /// RemoveContainer.
    Remove(ContainerId, Reply<()>),
    /// ReopenContainerLog.
    ReopenLog(ContainerId, Reply<()>),
    /// What an exec or attach needs of a running container.
    Enter(ContainerId, Purpose, Reply<Box<StartRequest>>),
    /// UpdateContainerResources, or a plugin's update.
    Update(ContainerId, Resources, Origin, Reply<()>),
    /// What its driver does, for an operator.
    Inspect(Reply<Inspection>),
    /// What plugins can be told of it.
    Records(Reply<PodRecords>),
}

/// Who requests new limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kubelet: plugins may change them.
    Kubelet,
    /// A plugin: the others do not learn of it.
    Plugin,
}

/// Why somebody needs access to a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run another program in it; refused while it is being stopped.
    Exec,
    /// To join the streams of its own program.
    Attach,
}

impl Purpose {
    /// As a verb, for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Purpose::Exec => "exec in",
            Purpose::Attach => "attach to",
        }
    }
}

/// The result of an effect on a container, or an observation of its process.
pub enum Completion {
    /// It was planned, recorded and built; or all of it was undone.
    Built(Result<Box<Created>, Error>),
    /// It was started, or the start failed.
    Started(Result<Started, Error>),
    /// Its process ended before its program ran; with the exit code, if known.
    NeverRan(Error, Option<i32>),
    /// Its cgroup and the keeper's record were removed, or the removal failed.
    Cleaned(Result<(), Error>),
    /// Everything of it was removed, or the removal failed.
    Forgotten(Result<(), Error>),
    /// Its pidfd fired and the keeper has not reported an exit: the exit as the kernel reports it.
    ProcessEnded(Exit),
    /// Its limits were changed, or the change failed and they are as before.
    Changed(Result<Box<Changed>, Error>),
}

/// A container that was planned, recorded and built.
pub struct Created {
    /// The request, as plugins adjusted it.
    pub config: Arc<ContainerConfig>,
    /// The request as it came, if they changed it.
    pub requested: Option<Box<ContainerConfig>>,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Accounts for the memory of its plan.
    pub share: Share,
    /// Its record.
    pub slot: Slot,
}

/// A pod that was created, recorded and committed.
pub struct ReadySandbox {
    /// What was created.
    pub created: CreatedSandbox,
    /// Its record.
    pub slot: Slot,
    /// What is recorded of it.
    pub live: Live,
}

/// A connection to a keeper.
pub struct Connection {
    /// To send it requests.
    pub keeper: Keeper,
    /// Its greeting.
    pub greeting: Greeting,
    /// The events that it sends.
    pub events: Receiver<KeeperEvent>,
}
