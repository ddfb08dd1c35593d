//! Containers whose record, or that of their exit, cannot be used: kept as they are, shown, and read again.
//!
//! Called by: the driver. Calls: recovery's reader.
//! Invariants: nothing of such a container is changed unless the kubelet asks for its end; its record is never written
//! over; it is read again ever more rarely; while there is none, no timer runs.
//! Not here: pods whose own record cannot be used (`kept`).

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::ContainerId;

use super::{Container, Driver, FoundContainer, Message, Waiting};
use crate::recover;
use crate::state::{ContainerPhase, Then};
use crate::store::Unreadable;
use crate::unreadable::container_config;

/// How long to wait before records are read again: at first, and at most.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Driver {
    /// Takes over a container of which only its id is certain.
    pub(super) fn keep_unreadable(&mut self, id: ContainerId, found: &Unreadable) {
        self.shared.registry.add_container(&id, &self.record.id);
        let config = Arc::new(container_config(&id, found.json.as_ref()));
        let container = Container {
            id: id.clone(),
            _share: self.shared.requests.take_over(config.as_ref()),
            config,
            plan: None,
            created_at: 1,
            phase: ContainerPhase::Creating(Then::Keep),
            slot: self.new_slot(&id),
            process: None,
            watch: None,
            early_exit: None,
            busy: 0,
            failure: None,
            waiting: Waiting::default(),
        };
        self.containers.insert(id.clone(), container);
        self.set_unreadable(&id, found.why.clone());
    }

    /// From here on nobody knows how it is with a container, until its records can be read again.
    pub(super) fn set_unreadable(&mut self, id: &ContainerId, why: String) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        tracing::error!(container = %id, why, "a container's record cannot be used; it is kept as it is and read again");
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

    /// Reads again what could not be read; what can be now goes on.
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
            match recover::read_container(&self.shared, &self.record, &id).await {
                Ok(Some(FoundContainer::Readable(record, slot))) => {
                    self.take_over(*record, slot);
                    self.go_on(&id).await;
                }
                Ok(Some(FoundContainer::Unreadable(_, found))) => self.still(&id, found.why),
                // It was torn, and is set aside now that nothing of it runs.
                Ok(None) => {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.phase = ContainerPhase::Gone;
                    }
                }
                Err(error) => self.still(&id, error.chain()),
            }
        }
        if !self.has_unreadable() {
            self.reading_pause = FIRST_PAUSE;
        }
        self.read_later();
    }

    fn still(&mut self, id: &ContainerId, why: String) {
        if let Some(container) = self.containers.get_mut(id) {
            container.phase = ContainerPhase::Unreadable(why);
        }
        self.show(id);
    }

    /// Finds out how it is with a container whose record has just been read.
    async fn go_on(&mut self, id: &ContainerId) {
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
            tracing::info!(container = %id, "a container's record can be used again");
        }
    }
}
