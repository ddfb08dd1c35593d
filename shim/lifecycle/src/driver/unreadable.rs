//! Containers whose record, or the record of whose exit, cannot be used: left as they are, shown, and read again.
//!
//! Called by: the driver. Calls: [`crate::disk`].
//! Invariants: such a container changes only when the kubelet stops or removes it; its record is never overwritten; the
//! pause between two reads grows; without such containers no timer runs.
//! Must not know: pods whose own record cannot be used ([`crate::unrecovered`]).

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::ContainerId;

use super::{Container, Driver, Message};
use crate::disk::{FoundContainer, read_container};
use crate::state::ContainerPhase;
use crate::store::Unreadable;
use crate::unreadable::container_config;

/// The pause before records are read again: the first one, and the longest.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Driver {
    /// Takes over a container of which only the id is certain.
    pub(super) fn keep_unreadable(&mut self, id: ContainerId, found: &Unreadable) {
        self.shared.registry.add_container(&id, &self.record.id);
        let config = Arc::new(container_config(&id, found.json.as_ref()));
        let namespace = &self.record.config.name.namespace;
        let share = self.shared.requests.take_over(namespace, config.as_ref());
        let slot = self.new_slot(&id);
        let container = Container::new(id.clone(), config, share, slot, 1);
        self.containers.insert(id.clone(), container);
        self.set_unreadable(&id, found.why.clone());
    }

    /// Marks a container as unreadable until its records can be read again.
    pub(super) fn set_unreadable(&mut self, id: &ContainerId, why: String) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        tracing::error!(container = container.config.name.name, %id, why, "a container's record cannot be used; it is left as it is and read again");
        container.phase = ContainerPhase::Unreadable(why);
        (container.watch, container.process) = (None, None);
        self.show(id);
        self.read_later();
    }

    /// Whether a record of a container cannot be used.
    pub(super) fn has_unreadable(&self) -> bool {
        let mut phases = self.containers.values().map(|container| &container.phase);
        phases.any(|phase| matches!(phase, ContainerPhase::Unreadable(_)))
    }

    fn read_later(&mut self) {
        if self.reading.is_some() || !self.has_unreadable() {
            return;
        }
        let pause = self.reading_pause;
        self.reading_pause = (pause * 2).min(LONGEST_PAUSE);
        self.reading = Some(self.watch(async move {
            tokio::time::sleep(pause).await;
            Message::ReadAgain
        }));
    }

    /// Reads the unusable records again; containers whose record can be read now continue.
    pub(super) async fn read_again(&mut self) {
        self.reading = None;
        let idle = |container: &&Container| {
            matches!(container.phase, ContainerPhase::Unreadable(_)) && container.busy == 0
        };
        let ids: Vec<ContainerId> = self
            .containers
            .values()
            .filter(idle)
            .map(|container| container.id.clone())
            .collect();
        for id in ids {
            match read_container(&self.shared.host, &self.record, &id).await {
                Ok(Some(FoundContainer::Readable(record, slot))) => {
                    self.take_over(*record, slot);
                    self.resume_container(&id).await;
                }
                Ok(Some(FoundContainer::Unreadable(_, found))) => {
                    self.stay_unreadable(&id, found.why)
                }
                // Its record was torn, and was moved aside now that none of its processes runs.
                Ok(None) => {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.phase = ContainerPhase::Gone;
                    }
                }
                Err(error) => self.stay_unreadable(&id, error.chain()),
            }
        }
        if !self.has_unreadable() {
            self.reading_pause = FIRST_PAUSE;
        }
        self.read_later();
    }

    fn stay_unreadable(&mut self, id: &ContainerId, why: String) {
        if let Some(container) = self.containers.get_mut(id) {
            container.phase = ContainerPhase::Unreadable(why);
        }
        self.show(id);
    }

    /// Finds the process and phase of a container whose record has just been read.
    async fn resume_container(&mut self, id: &ContainerId) {
        let Some(phase) = self.containers.get(id).map(|held| held.phase.clone()) else {
            return;
        };
        if let Some(run) = phase.run() {
            self.find_process(id, run).await;
        } else if matches!(phase, ContainerPhase::Starting(_)) {
            self.give_up_start(id).await;
        }
        self.resume_phase(id).await;
        let phase = self.containers.get(id).map(|held| &held.phase);
        if !matches!(phase, Some(ContainerPhase::Unreadable(_))) {
            tracing::info!(container = self.name_of(id), %id, "a container's record can be used again");
        }
    }
}
