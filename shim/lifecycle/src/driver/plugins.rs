//! The part of a driver that tells plugins what happened, in order, without waiting for them.
//!
//! Called by: the driver after changes of phases; effects, which wait where a plugin may refuse.
//! Invariants: the events of a pod reach plugins one after the other, each with its number, and follow from phases alone,
//! so that a plugin which comes between two of them learns of each change once; a driver never waits for a plugin, and
//! whatever else waits until they were told does so for a limited time; without a plugin nothing is allocated.
//! Must not know: plugins.

use std::sync::Arc;

use coracle_spec::id::ContainerId;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::requests::build;
use super::{Created, Driver, Shared};
use crate::error::Error;
use crate::host::KeeperEngine;
use crate::plugins::{PluginEvent, PluginEventKind};
use crate::record::{ContainerRecord, PodRecord};
use crate::state::{ContainerPhase, PodPhase};

/// One entry of a pod's queue.
pub enum Notice {
    /// To tell plugins.
    Event(PluginEvent),
    /// To answer once everything before it was told.
    Flush(oneshot::Sender<()>),
}

/// Everything of a pod and its containers that plugins can be told.
pub struct PodRecords {
    /// The pod.
    pub pod: PodRecord,
    /// Its containers that exist.
    pub containers: Vec<ContainerRecord>,
    /// The pod and containers that are still being created.
    pub unborn: Vec<String>,
    /// The number of the pod's last event: all this is as it was after it.
    pub notified: u64,
}

impl Driver {
    /// Tells plugins that a container, which was in phase `before`, exists, runs, has ended or is gone.
    pub(super) fn tell_of_container(&mut self, id: &ContainerId, before: &ContainerPhase) {
        use ContainerPhase::{
            Created, Creating, Exited, Gone, Removing, Running, Starting, Stopping,
        };
        if !self.shared.plugins.any() {
            return;
        }
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let kind = match (before, &container.phase) {
            (Creating(_), Created | Removing(_)) => PluginEventKind::ContainerCreated,
            (Starting(_), Running(_) | Stopping(..)) => PluginEventKind::ContainerStarted,
            (Starting(_) | Running(_) | Stopping(..), Exited(_) | Removing(_)) => {
                PluginEventKind::ContainerStopped
            }
            (Removing(_), Gone) => PluginEventKind::ContainerRemoved,
            _ => return,
        };
        // Without a plan it was never created.
        let Some(record) = container.record() else {
            return;
        };
        self.tell(kind, Some(record));
    }

    /// Tells plugins of a container's changed limits.
    pub(super) fn tell_of_limits(&mut self, id: &ContainerId) {
        if !self.shared.plugins.any() {
            return;
        }
        if let Some(record) = self.containers.get(id).and_then(super::Container::record) {
            self.tell(PluginEventKind::ContainerUpdated, Some(record));
        }
    }

    /// Tells plugins that the pod, which was in phase `before`, is ready or gone.
    pub(super) fn tell_of_pod(&mut self, before: &PodPhase) {
        if self.failure.is_some() || !self.shared.plugins.any() {
            return;
        }
        match (before, &self.record.phase) {
            (PodPhase::Starting, PodPhase::Ready(_)) => {
                self.tell(PluginEventKind::PodStarted, None);
            }
            (PodPhase::Removing, PodPhase::Gone) => self.tell(PluginEventKind::PodRemoved, None),
            _ => {}
        }
    }

    fn tell(&mut self, kind: PluginEventKind, container: Option<ContainerRecord>) {
        self.notified += 1;
        let event = PluginEvent {
            kind,
            number: Some(self.notified),
            pod: Arc::new(self.record.clone()),
            container: container.map(Box::new),
        };
        let shared = &self.shared;
        let queue = self.notices.get_or_insert_with(|| {
            let (sender, notices) = unbounded_channel();
            tokio::spawn(deliver(Arc::clone(shared), notices));
            sender
        });
        // Err: the task has panicked.
        let _ = queue.send(Notice::Event(event));
    }

    /// What an effect waits for before it tears the pod down: plugins are told of the ends of its containers, then of
    /// its own. `None` without plugins, and when they were told.
    pub(super) fn tell_of_stop(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.notified_of_stop || !self.shared.plugins.any() {
            return None;
        }
        self.notified_of_stop = true;
        self.tell(PluginEventKind::PodStopped, None);
        self.notified()
    }

    /// Waits until plugins were told of everything so far, for a limited time. `None` if there is nothing to tell.
    pub(super) fn notified(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (sender, flushed) = oneshot::channel();
        // Err: the task has panicked.
        let _ = self.notices.as_ref()?.send(Notice::Flush(sender));
        let patience = self.shared.plugins.patience();
        Some(async move {
            if tokio::time::timeout(patience, flushed).await.is_err() {
                let waited_ms = patience.as_millis();
                tracing::warn!(
                    waited_ms,
                    "plugins have not been told of everything yet; nothing waits for that any longer"
                );
            }
        })
    }

    /// What plugins are told of a container before a change; `None` before it is planned.
    pub(super) fn notified_of(&self, id: &ContainerId) -> Option<(PodRecord, ContainerRecord)> {
        let container = self.containers.get(id)?;
        Some((self.record.clone(), container.record()?))
    }

    /// What plugins can be told of the pod as it is.
    pub(super) fn records(&self) -> PodRecords {
        let is_born = |phase: &ContainerPhase| {
            !matches!(phase, ContainerPhase::Creating(_) | ContainerPhase::Gone)
        };
        let all = self.containers.values();
        let (born, unborn): (Vec<_>, Vec<_>) = all.partition(|container| is_born(&container.phase));
        let mut unborn: Vec<String> = unborn.iter().map(|one| one.id.to_string()).collect();
        if self.record.phase == PodPhase::Starting {
            unborn.push(self.record.id.to_string());
        }
        PodRecords {
            notified: self.notified,
            pod: self.record.clone(),
            containers: born.iter().filter_map(|one| one.record()).collect(),
            unborn,
        }
    }
}

async fn deliver(shared: Arc<Shared>, mut notices: UnboundedReceiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Event(event) => shared.plugins.observe(&event).await,
            Notice::Flush(done) => drop(done.send(())),
        }
    }
}

/// Tells plugins that were asked about a pod or container that nothing came of it.
async fn undone(
    shared: &Shared,
    kind: PluginEventKind,
    pod: &Arc<PodRecord>,
    container: Option<&ContainerRecord>,
) {
    let event = PluginEvent {
        kind,
        number: None,
        pod: Arc::clone(pod),
        container: container.cloned().map(Box::new),
    };
    shared.plugins.observe(&event).await;
}

/// Tells plugins of a sandbox that is complete but not listed. Errors: one refuses it; all then learn that it is gone.
pub(super) async fn run_pod(shared: &Shared, ready: &PodRecord) -> Result<(), Error> {
    if !shared.plugins.any() {
        return Ok(());
    }
    let Err(refused) = shared.plugins.run_pod(ready).await else {
        return Ok(());
    };
    let pod = Arc::new(ready.clone());
    for kind in [PluginEventKind::PodStopped, PluginEventKind::PodRemoved] {
        undone(shared, kind, &pod, None).await;
    }
    Err(refused)
}

/// Creates a planned container, which plugins adjust before, once they know what `notified` waits for. A creation that fails
/// after they were asked is followed by its end.
pub(super) async fn create(
    shared: &Arc<Shared>,
    notified: Option<impl Future<Output = ()>>,
    pod: &PodRecord,
    planned: ContainerRecord,
    engine: &KeeperEngine,
) -> Result<Created, Error> {
    if !shared.plugins.any() {
        return build(shared, pod, planned).await;
    }
    if let Some(notified) = notified {
        notified.await;
    }
    let mut last = planned.clone();
    let result = match adjust(shared, pod, planned, engine).await {
        Ok(adjusted) => {
            last = adjusted.clone();
            build(shared, pod, adjusted).await
        }
        Err(error) => Err(error),
    };
    if result.is_err() {
        let pod = Arc::new(pod.clone());
        for kind in [
            PluginEventKind::ContainerStopped,
            PluginEventKind::ContainerRemoved,
        ] {
            undone(shared, kind, &pod, Some(&last)).await;
        }
    }
    result
}

/// The container as plugins adjusted it. Errors: one refuses it; an adjustment cannot be met.
async fn adjust(
    shared: &Shared,
    pod: &PodRecord,
    mut record: ContainerRecord,
    engine: &KeeperEngine,
) -> Result<ContainerRecord, Error> {
    let Some(adjusted) = shared.plugins.create_container(pod, &record).await? else {
        return Ok(record);
    };
    let (name, by) = (&record.config.name, &adjusted.plugins);
    let text = format!("adjust container {name} as NRI plugins request ({by})");
    let unmet = |error: Error| Error::because(error.kind(), text.clone(), error);
    let mut plan = (*record.plan).clone();
    if adjusted.config != *record.config {
        let (id, config) = (&record.id, Arc::new(adjusted.config.clone()));
        let planned = shared.host().plan(pod, id, &config, engine).await;
        plan = planned.map_err(unmet)?;
        record.requested = Some(Box::new((*record.config).clone()));
        record.config = config;
    }
    adjusted.apply(pod, &mut plan).map_err(unmet)?;
    record.plan = Arc::new(plan);
    Ok(record)
}

/// Asks plugins about the start of a container, once they know what `notified` waits for. Errors: one refuses it.
pub(super) async fn may_start(
    shared: &Shared,
    notified: Option<impl Future<Output = ()>>,
    asked: Option<(PodRecord, ContainerRecord)>,
) -> Result<(), Error> {
    let Some((pod, record)) = asked.filter(|_| shared.plugins.any()) else {
        return Ok(());
    };
    if let Some(notified) = notified {
        notified.await;
    }
    shared.plugins.start_container(&pod, &record).await
}
