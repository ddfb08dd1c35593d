//! The states of a pod: phases, events and [`pod_step`].
//!
//! Called by: the driver, like [`super::step`]; pure, too.
//! Invariants: a pod's network is torn down only after its last container has ended; its records are removed only after
//! its last container is gone. Must not know: phases of containers.

use coracle_network::Attachment;
use serde::{Deserialize, Serialize};

use super::{ProcessFact, Then};

/// The resources of a pod while its keeper lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Its keeper.
    pub keeper: ProcessFact,
    /// Its attachment to the network; none on the host's.
    pub attachment: Option<Attachment>,
}

/// The phase of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Namespaces, network and keeper are being created; not listed.
    Starting,
    /// Containers can be created.
    Ready(Live),
    /// Its containers end, then its network is torn down; shown as not ready.
    Stopping(Live, Then),
    /// No process of it lives.
    NotReady,
    /// Its containers and records are being removed. Never on disk.
    Removing,
    /// It does not exist any more. Never on disk.
    Gone,
}

impl PodPhase {
    /// Its name for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            PodPhase::Starting => "starting",
            PodPhase::Ready(_) => "ready",
            PodPhase::Stopping(..) => "stopping",
            PodPhase::NotReady => "not ready",
            PodPhase::Removing => "being removed",
            PodPhase::Gone => "gone",
        }
    }

    /// Its resources, while it has some.
    pub fn live(&self) -> Option<&Live> {
        match self {
            PodPhase::Ready(live) | PodPhase::Stopping(live, _) => Some(live),
            _ => None,
        }
    }
}

/// What happened to a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodEvent {
    /// Namespaces, network and keeper exist.
    Created(Live),
    /// They could not be created, and all of them were undone.
    CreateFailed,
    /// StopPodSandbox.
    StopRequested,
    /// Its keeper has died.
    KeeperLost,
    /// None of its containers has a process or an effect under way.
    Emptied,
    /// Keeper, network and cgroup are gone.
    TornDown,
    /// RemovePodSandbox.
    RemoveRequested,
    /// None of its containers exists any more.
    Cleared,
    /// Its records are gone.
    Forgotten,
}

/// What the driver does after it saved a pod's phase. Each effect can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodEffect {
    /// End every container now.
    EndContainers,
    /// End the keeper, unpin the namespaces, release the address, remove the cgroup.
    TearDown,
    /// Remove every container.
    RemoveContainers,
    /// Remove records and directories.
    Forget,
}

/// A request that does not fit a pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not fit a sandbox that is {while_in}")]
pub struct PodRefused {
    event: &'static str,
    while_in: &'static str,
}

impl PodRefused {
    fn new(event: &PodEvent, phase: &PodPhase) -> PodRefused {
        PodRefused {
            event: event.name(),
            while_in: phase.name(),
        }
    }
}

/// The next phase and the effects when `event` happens to a pod in `phase`.
/// Errors: the event is impossible in this phase, which then stays.
pub fn pod_step(
    phase: PodPhase,
    event: PodEvent,
) -> Result<(PodPhase, Vec<PodEffect>), PodRefused> {
    use PodPhase::{Gone, NotReady, Ready, Removing, Starting, Stopping};
    let next = match (phase, event) {
        (Starting, PodEvent::Created(live)) => (Ready(live), vec![]),
        (Starting, PodEvent::CreateFailed) => (Removing, vec![PodEffect::Forget]),
        (Ready(live), PodEvent::StopRequested | PodEvent::KeeperLost) => {
            (Stopping(live, Then::Keep), vec![PodEffect::EndContainers])
        }
        (Ready(live) | Stopping(live, _), PodEvent::RemoveRequested) => {
            (Stopping(live, Then::Remove), vec![PodEffect::EndContainers])
        }
        (Stopping(live, then), PodEvent::StopRequested | PodEvent::KeeperLost) => {
            (Stopping(live, then), vec![PodEffect::EndContainers])
        }
        (Stopping(live, then), PodEvent::Emptied) => {
            (Stopping(live, then), vec![PodEffect::TearDown])
        }
        (Stopping(_, Then::Keep), PodEvent::TornDown) => (NotReady, vec![]),
        (Stopping(_, Then::Remove), PodEvent::TornDown) => {
            (Removing, vec![PodEffect::RemoveContainers])
        }
        (NotReady | Removing, PodEvent::RemoveRequested) => {
            (Removing, vec![PodEffect::RemoveContainers])
        }
        (Removing, PodEvent::Cleared) => (Removing, vec![PodEffect::Forget]),
        (Removing, PodEvent::Forgotten) => (Gone, vec![]),
        (idle @ (NotReady | Removing | Gone), PodEvent::StopRequested | PodEvent::KeeperLost) => {
            (idle, vec![])
        }
        (Gone, PodEvent::RemoveRequested) => (Gone, vec![]),
        (other, event) => return Err(PodRefused::new(&event, &other)),
    };
    Ok(next)
}

impl PodEvent {
    fn name(&self) -> &'static str {
        match self {
            PodEvent::Created(_) => "a finished start",
            PodEvent::CreateFailed => "a failed start",
            PodEvent::StopRequested => "a stop",
            PodEvent::KeeperLost => "the keeper's death",
            PodEvent::Emptied => "the end of its last container",
            PodEvent::TornDown => "a finished stop",
            PodEvent::RemoveRequested => "a removal",
            PodEvent::Cleared => "the removal of its last container",
            PodEvent::Forgotten => "a finished removal",
        }
    }
}
