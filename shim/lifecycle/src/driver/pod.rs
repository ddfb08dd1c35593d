//! The part of a driver that creates, stops and removes its sandbox.

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::PodId;

use super::answers::answer;
use super::{Driver, Message, Progress, ReadySandbox, Reply, Shared, plugins, save};
use crate::blocking::{blocking, io_error, make_private, pass};
use crate::clock;
use crate::config::SandboxConfig;
use crate::error::{Error, Kind};
use crate::host::CreatedSandbox;
use crate::record::PodRecord;
use crate::state::{
    ContainerPhase, Event, Live, PodEffect, PodEvent, PodPhase, ProcessFact, pod_step,
};
use crate::store::Slot;
use crate::view::EventKind;

impl Driver {
    pub(super) fn handle_ready(&mut self, config: &SandboxConfig, reply: Reply<()>) {
        let mine = self.record.config.is_repeated_by(config);
        if mine && matches!(self.record.phase, PodPhase::Starting | PodPhase::Ready(_)) {
            // Reconciling answers it: at once, or together with the first try.
            self.ready.push(reply);
            return;
        }
        let (id, phase) = (&self.record.id, self.record.phase.name());
        let text = format!(
            "sandbox name {} belongs to {id}, which is {phase}; use another attempt",
            config.name
        );
        let _ = reply.send(Err(Error::new(Kind::NameTaken, text)));
    }

    pub(super) async fn handle_stop_pod(&mut self, reply: Reply<()>) {
        self.try_again();
        self.shared.host.stop_relabels(&self.record.id);
        match self.pod_step(PodEvent::StopRequested).await {
            Ok(()) => self.stop.push(reply),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) async fn handle_remove_pod(&mut self, reply: Reply<()>) {
        self.try_again();
        self.shared.host.stop_relabels(&self.record.id);
        match self.pod_step(PodEvent::RemoveRequested).await {
            Ok(()) => self.remove.push(reply),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn try_again(&mut self) {
        if self.progress == Progress::Failed {
            self.progress = Progress::Idle;
        }
    }

    pub(super) fn answer_pod(&mut self) {
        let phase = &self.record.phase;
        if matches!(phase, PodPhase::Ready(_)) {
            answer(&mut self.ready, &Ok(()));
        }
        if matches!(
            phase,
            PodPhase::NotReady | PodPhase::Removing | PodPhase::Gone
        ) {
            answer(&mut self.stop, &Ok(()));
        }
        if *phase == PodPhase::Gone {
            answer(&mut self.remove, &Ok(()));
            let failure = self.failure.clone();
            let gone = || {
                Error::new(
                    Kind::Missing,
                    format!("sandbox {} was removed meanwhile", self.record.id),
                )
            };
            answer(&mut self.ready, &Err(failure.unwrap_or_else(gone)));
        }
    }

    /// Continues a stop or a removal once the containers have reached the phase that it waits for.
    pub(super) async fn reconcile_pod(&mut self) {
        if self.progress != Progress::Idle {
            return;
        }
        let next = match &self.record.phase {
            PodPhase::Stopping(..) if self.containers.values().all(super::Container::is_quiet) => {
                PodEvent::Emptied
            }
            PodPhase::Removing if self.containers.is_empty() => PodEvent::Cleared,
            _ => return,
        };
        self.pod_step_or_log(next).await;
    }

    pub(super) async fn pod_step_or_log(&mut self, event: PodEvent) {
        if let Err(error) = self.pod_step(event).await {
            tracing::error!(error = error.chain(), "a sandbox's change was refused");
        }
    }

    /// Applies an event: decides, saves, publishes, starts the effects.
    pub(super) async fn pod_step(&mut self, event: PodEvent) -> Result<(), Error> {
        let before = self.record.phase.clone();
        let decided = pod_step(before.clone(), event);
        let refused =
            |why| Error::because(Kind::WrongPhase, format!("sandbox {}", self.record.id), why);
        let (next, effects) = decided.map_err(refused)?;
        self.record.phase = next;
        let on_disk = matches!(
            self.record.phase,
            PodPhase::Stopping(..) | PodPhase::NotReady
        );
        if self.record.phase != before
            && on_disk
            && let Err(error) = save(None, &mut self.slot, self.record.clone()).await
        {
            // A stop must work on a full disk; a later daemon finds the keeper gone and comes to the same phase.
            tracing::error!(error = error.chain(), "a sandbox's record was not saved");
        }
        if self.record.phase != before {
            self.report_pod(&before);
            self.tell_of_pod(&before);
        }
        self.show_pod();
        self.publish_pod_event(&before);
        for effect in effects {
            self.act_pod(effect).await;
        }
        Ok(())
    }

    /// Publishes the pod's snapshot, once clients may see it.
    pub(super) fn show_pod(&self) {
        let unborn = self.failure.is_some() || self.record.phase == PodPhase::Starting;
        if !unborn && self.record.phase != PodPhase::Gone {
            self.shared.cache.show_pod(self.record.view());
        }
    }

    fn publish_pod_event(&self, before: &PodPhase) {
        let id = self.record.id.as_str();
        match (before, &self.record.phase) {
            (PodPhase::Starting, PodPhase::Ready(_)) => {
                self.publish_event(EventKind::Created, id);
                self.publish_event(EventKind::Started, id);
            }
            (PodPhase::Ready(_), PodPhase::Stopping(..)) => {
                self.publish_event(EventKind::Stopped, id)
            }
            (PodPhase::Removing, PodPhase::Gone) => {
                if let Some(last) = self.shared.cache.hide_pod(&self.record.id) {
                    self.shared
                        .cache
                        .publish(EventKind::Deleted, id, clock::wall(), last);
                }
            }
            _ => {}
        }
    }

    async fn act_pod(&mut self, effect: PodEffect) {
        match effect {
            PodEffect::EndContainers => {
                let unknown = |phase: &_| matches!(phase, ContainerPhase::Unreadable(_));
                let live = self
                    .containers
                    .values()
                    .filter(|container| container.phase.is_live() || unknown(&container.phase));
                for id in live
                    .map(|container| container.id.clone())
                    .collect::<Vec<_>>()
                {
                    self.step_or_log(&id, Event::StopRequested(Duration::ZERO))
                        .await;
                }
            }
            PodEffect::RemoveContainers => {
                for id in self.containers.keys().cloned().collect::<Vec<_>>() {
                    self.step_or_log(&id, Event::RemoveRequested).await;
                }
            }
            PodEffect::TearDown => self.tear_down(),
            PodEffect::Forget => self.forget_pod(),
        }
    }

    pub(super) fn create_pod(&mut self) {
        self.progress = Progress::Busy;
        let (shared, record, slot) = (
            Arc::clone(&self.shared),
            self.record.clone(),
            self.slot.clone(),
        );
        self.effect(create_sandbox(shared, record, slot), |result| {
            Message::SandboxCreated(result.map(Box::new))
        });
    }

    pub(super) async fn created(&mut self, result: Result<Box<ReadySandbox>, Error>) {
        self.progress = Progress::Idle;
        let event = match result {
            Ok(ready_sandbox) => {
                let ReadySandbox {
                    created,
                    slot,
                    live,
                } = *ready_sandbox;
                self.slot = slot;
                self.keep(Some(created.process));
                self.keeper = Some(created.keeper);
                self.events = Some(created.events);
                self.engine_hash = created.greeting.engine_hash;
                PodEvent::Created(live)
            }
            Err(error) => {
                self.failure = Some(error);
                PodEvent::CreateFailed
            }
        };
        self.pod_step_or_log(event).await;
    }

    fn tear_down(&mut self) {
        self.progress = Progress::Busy;
        (self.keeper_watch, self.calling) = (None, None);
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let (keeper, process) = (self.keeper.clone(), self.keeper_process.clone());
        let notified = self.tell_of_stop();
        self.effect(
            async move {
                if let Some(notified) = notified {
                    notified.await;
                }
                shared
                    .host()
                    .tear_down_sandbox(&record, keeper, process)
                    .await
            },
            Message::TornDown,
        );
    }

    pub(super) async fn torn_down(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                self.progress = Progress::Idle;
                (self.keeper, self.events) = (None, None);
                self.keep(None);
                self.pod_step_or_log(PodEvent::TornDown).await;
            }
            Err(error) => {
                self.progress = Progress::Failed;
                tracing::error!(
                    error = error.chain(),
                    "a sandbox was not taken down completely"
                );
                answer(&mut self.stop, &Err(error.clone()));
                answer(&mut self.remove, &Err(error));
            }
        }
    }

    fn forget_pod(&mut self) {
        self.progress = Progress::Busy;
        let (shared, pod) = (Arc::clone(&self.shared), self.record.id.clone());
        self.effect(
            blocking("forgetting a sandbox", move || shared.host.forget_pod(&pod)),
            Message::PodForgotten,
        );
    }

    pub(super) async fn pod_forgotten(&mut self, result: Result<(), Error>) {
        self.progress = Progress::Idle;
        if let Err(error) = result {
            tracing::error!(
                error = error.chain(),
                "a sandbox's directory was not removed"
            );
            if self.failure.is_none() {
                self.progress = Progress::Failed;
                answer(&mut self.remove, &Err(error));
                return;
            }
            // The sandbox never became ready, so no client will ask to remove it.
            forget_later(Arc::clone(&self.shared), self.record.id.clone());
        }
        self.pod_step_or_log(PodEvent::Forgotten).await;
    }

    /// A container could not be removed: answers the requests to remove the pod with the error.
    pub(super) fn removal_failed(&mut self, error: &Error) {
        answer(&mut self.remove, &Err(error.clone()));
    }
}

/// Retries the removal of a sandbox that never became ready until it succeeds; what prevented it, such as a lack of
/// descriptors, may pass. The next start sweeps whatever remains.
fn forget_later(shared: Arc<Shared>, pod: PodId) {
    tokio::spawn(async move {
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let (host, id) = (Arc::clone(&shared.host), pod.clone());
            let forgotten = blocking("forgetting a sandbox", move || host.forget_pod(&id));
            if forgotten.await.is_ok() {
                return;
            }
        }
        tracing::error!(%pod, "the remains of a failed sandbox stay until the next start");
    });
}

/// Records a pod as starting, creates it, records it as ready and commits its keeper. Undoes all of it on failure.
async fn create_sandbox(
    shared: Arc<Shared>,
    record: PodRecord,
    slot: Slot,
) -> Result<ReadySandbox, Error> {
    let slot = begin(&shared, &record, slot).await?;
    let created = shared.host().create_sandbox(&record).await?;
    let keeper = ProcessFact {
        pid: created.process.pid(),
        start_time: created.process.start_time(),
    };
    let live = Live {
        keeper,
        attachment: created.attachment.clone(),
    };
    let mut ready_sandbox = ReadySandbox {
        created,
        slot,
        live,
    };
    let ready = PodRecord {
        phase: PodPhase::Ready(ready_sandbox.live.clone()),
        ..record
    };
    if let Err(error) = complete(&shared, &ready, &mut ready_sandbox).await {
        undo_sandbox(&shared, &ready, ready_sandbox.created).await;
        return Err(error);
    }
    Ok(ready_sandbox)
}

/// Lets plugins see a sandbox that was created, records it as ready and commits its keeper.
async fn complete(
    shared: &Shared,
    ready: &PodRecord,
    sandbox: &mut ReadySandbox,
) -> Result<(), Error> {
    plugins::run_pod(shared, ready).await?;
    save(Some("run.ready-record"), &mut sandbox.slot, ready.clone()).await?;
    let keeper = sandbox.created.keeper.clone();
    shared.host().commit(&ready.id, &keeper).await
}

/// Tears down a sandbox whose keeper was not committed. What is left of it is logged; the next start sweeps it.
async fn undo_sandbox(shared: &Shared, record: &PodRecord, created: CreatedSandbox) {
    drop(created.lifeline);
    let host = shared.host();
    let undone = host.tear_down_sandbox(record, Some(created.keeper), Some(created.process));
    if let Err(error) = undone.await {
        tracing::warn!(pod = %record.id, error = error.chain(), "a failed sandbox was not undone completely");
    }
}

async fn begin(shared: &Arc<Shared>, record: &PodRecord, mut slot: Slot) -> Result<Slot, Error> {
    let (shared, record) = (Arc::clone(shared), record.clone());
    blocking("recording a sandbox", move || {
        pass("run.record")?;
        make_private(&shared.host.layout().containers_directory(&record.id))?;
        let saved = slot.save(&record);
        saved.map_err(|error| {
            io_error(format!("save the record of sandbox {}", record.id), error)
        })?;
        Ok(slot)
    })
    .await
}
