//! The life of a pod: phases, events and [`pod_step`].
//!
//! Called by: the driver, like [`super::step`]; pure, too.
//! Invariants: a pod's network is taken down only after its last container has ended; its records go only after its
//! last container is gone. Not here: containers' phases.

use coracle_network::Attachment;
use serde::{Deserialize, Serialize};

use super::{ProcessFact, Then};

/// What a pod holds while its keeper lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Its keeper.
    pub keeper: ProcessFact,
    /// Its place in the network; none on the host's.
    pub attachment: Option<Attachment>,
}

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Namespaces, network and keeper are being made; not listed.
    Starting,
    /// Containers can be created.
    Ready(Live),
    /// Its containers end, then its network is taken down; shown as not ready.
    Stopping(Live, Then),
    /// Nothing of it lives.
    NotReady,
    /// Its containers and records are being removed. Never on disk.
    Removing,
    /// It is no more. Never on disk.
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

    /// What it holds, while it holds something.
    pub fn live(&self) -> Option<&Live> {
        match self {
            PodPhase::Ready(live) | PodPhase::Stopping(live, _) => Some(live),
            _ => None,
        }
    }
}

/// What happens to a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodEvent {
    /// Namespaces, network and keeper are there.
    Created(Live),
    /// They could not be made, and nothing of them is left.
    CreateFailed,
    /// StopPodSandbox.
    StopRequested,
    /// Its keeper has died.
    KeeperLost,
    /// No container of it lives any more and none is being worked on.
    Emptied,
    /// Keeper, network and cgroup are gone.
    TornDown,
    /// RemovePodSandbox.
    RemoveRequested,
    /// No container of it exists any more.
    Cleared,
    /// Its records are gone.
    Forgotten,
}

/// What the driver does after a pod's phase was saved. Each can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodEffect {
    /// Let every container end now.
    EndContainers,
    /// Dismiss the keeper, unpin the namespaces, give the address back, remove the cgroup.
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

/// What follows when `event` happens to a pod in `phase`.
/// Errors: the pair does not fit; the phase then stays as it was.
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
        (other, event) => {
            return Err(PodRefused {
                event: event.name(),
                while_in: other.name(),
            });
        }
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
