//! What a driver says of itself to an operator who asks: what it does, since when, and what it waits for.
//!
//! Called by: the driver, for a request of the admin service. Invariant: it answers from memory, at once.
//! Must not know: who asks.

use std::time::Duration;

use super::{Container, Driver, Progress};
use crate::state::{ContainerPhase, PodPhase};

/// What a pod's driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The pod's namespace and name.
    pub pod: (String, String),
    /// Its phase.
    pub phase: &'static str,
    /// For how long it has been in it; since the daemon's start if that is shorter.
    pub since: Duration,
    /// What it waits for, for people.
    pub waits: Vec<String>,
    /// The pid of its keeper, if that lives.
    pub keeper_pid: Option<i32>,
    /// Its keeper answers.
    pub keeper_answers: bool,
}

impl Driver {
    /// What this driver does.
    pub(super) fn inspect(&self) -> Inspection {
        let name = &self.record.config.name;
        let mut waits = Vec::new();
        match (self.progress, &self.record.phase) {
            (Progress::Idle, _) => {}
            (Progress::Busy, PodPhase::Starting) => {
                waits.push("its namespaces, network and keeper are being created".to_owned());
            }
            (Progress::Busy, PodPhase::Stopping(..)) => {
                waits.push("its network and keeper are being taken down".to_owned());
            }
            (Progress::Busy, _) => waits.push("its directory is being removed".to_owned()),
            (Progress::Failed, _) => {
                waits.push(
                    "the last attempt to stop or remove it failed; the next request tries again"
                        .to_owned(),
                );
            }
        }
        if self.calling.is_some() {
            waits.push("its keeper does not answer; trying again".to_owned());
        }
        if self.reading.is_some() {
            waits.push("a record that cannot be used will be read again".to_owned());
        }
        waits.extend(self.containers.values().filter_map(wait));
        Inspection {
            pod: (name.namespace.clone(), name.name.clone()),
            phase: self.record.phase.name(),
            since: self.since.elapsed(),
            waits,
            keeper_pid: self.keeper_process.as_ref().map(|process| process.pid()),
            keeper_answers: self.keeper.is_some(),
        }
    }
}

/// What a container waits for, if it does.
fn wait(container: &Container) -> Option<String> {
    let what = match &container.phase {
        ContainerPhase::Creating(_) => "under creation",
        ContainerPhase::Starting(_) => "starting",
        ContainerPhase::Stopping(..) => "stopping",
        ContainerPhase::Removing(_) => "under removal",
        _ => return None,
    };
    let name = &container.config.name.name;
    let ms = container.since.elapsed().as_millis();
    Some(format!("container {name} has been {what} for {ms} ms"))
}
