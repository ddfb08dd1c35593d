//! The messages of a driver's mailbox: requests, and completions of effects.
//!
//! Invariant: the sender of a request may be gone; its answer is then dropped. Not here: what follows from a message.

use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_spec::Exit;
use coracle_spec::id::ContainerId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::update::Changed;
use crate::config::{ContainerConfig, Resources, SandboxConfig};
use crate::error::Error;
use crate::host::{CreatedSandbox, StartRequest, Started};
use crate::record::Plan;
use crate::state::Live;
use crate::store::Slot;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;
/// Where messages are sent.
pub type Mailbox = UnboundedSender<Message>;

/// One message.
pub enum Message {
    /// A request of the kubelet.
    Request(Request),
    /// The pod stands and is recorded as ready, or nothing of it is left.
    SandboxCreated(Result<Box<ReadySandbox>, Error>),
    /// Keeper, network and cgroup are gone.
    TornDown(Result<(), Error>),
    /// The pod's records are gone.
    PodForgotten(Result<(), Error>),
    /// The keeper's process has ended.
    KeeperEnded,
    /// A new connection to a keeper that had hung up.
    Reconnected(Box<Connection>),
    /// It is time to read again what could not be read.
    ReadAgain,
    /// Something that happened to one container.
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
    /// What it takes to reach into a running container.
    Enter(ContainerId, Purpose, Reply<Box<StartRequest>>),
    /// UpdateContainerResources.
    Update(ContainerId, Resources, Reply<()>),
}

/// What somebody reaches into a running container for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run another program there; not while it is being stopped.
    Exec,
    /// To join the streams of its own program.
    Attach,
}

impl Purpose {
    /// For messages.
    pub fn verb(self) -> &'static str {
        match self {
            Purpose::Exec => "exec in",
            Purpose::Attach => "attach to",
        }
    }
}

/// What an effect on a container came to, or what was seen of it.
pub enum Completion {
    /// Planned, recorded and built, or none of it.
    Built(Result<Box<(Arc<Plan>, Slot)>, Error>),
    /// Started, or not.
    Started(Result<Started, Error>),
    /// Its process came to be and ended before its program ran, with this exit code if anybody knows it.
    NeverRan(Error, Option<i32>),
    /// Its cgroup and the keeper's record are gone, or were not to be removed.
    Cleaned(Result<(), Error>),
    /// Nothing of it is left, or something is.
    Forgotten(Result<(), Error>),
    /// Its pidfd fired and the keeper has reported nothing: the exit as the kernel knows it.
    ProcessEnded(Exit),
    /// Its limits are changed, or are as they were.
    Changed(Result<Box<Changed>, Error>),
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
    pub events: UnboundedReceiver<KeeperEvent>,
}
