//! The part of a driver that tells plugins what happened, in order, without waiting for them.
//!
//! Called by: the driver after changes of phases; effects, which wait where a plugin may refuse.
//! Invariants: the events of a pod reach plugins one after the other; a driver never waits for a plugin; without a
//! plugin nothing is allocated.
//! Must not know: plugins.

use std::sync::Arc;

use coracle_spec::id::ContainerId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::requests::build;
use super::{Created, Driver, Shared};
use crate::error::Error;
use crate::host::{KeeperEngine, Started};
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
}

impl Driver {
    /// Tells plugins that a container, which was in phase `before`, has ended or is gone.
    pub(super) fn tell_of_container(&mut self, id: &ContainerId, before: &ContainerPhase) {
        use ContainerPhase::{Exited, Gone, Removing, Running, Starting, Stopping};
        if !self.shared.plugins.any() {
            return;
        }
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let kind = match (before, &container.phase) {
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

    /// Tells plugins that the pod, which was in phase `before`, is gone.
    pub(super) fn tell_of_pod(&mut self, before: &PodPhase) {
        let gone = *before == PodPhase::Removing && self.record.phase == PodPhase::Gone;
        if gone && self.failure.is_none() && self.shared.plugins.any() {
            self.tell(PluginEventKind::PodRemoved, None);
        }
    }

    fn tell(&mut self, kind: PluginEventKind, container: Option<ContainerRecord>) {
        let event = PluginEvent {
            kind,
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
        if self.told_of_stop || !self.shared.plugins.any() {
            return None;
        }
        self.told_of_stop = true;
        let flushed = self.notices.as_ref().map(flush);
        let (shared, pod) = (Arc::clone(&self.shared), Arc::new(self.record.clone()));
        Some(async move {
            if let Some(flushed) = flushed {
                // Err: the task has panicked.
                let _ = flushed.await;
            }
            observe(&shared, PluginEventKind::PodStopped, &pod, None).await;
        })
    }

    /// What plugins are told of a container before a change; `None` before it is planned.
    pub(super) fn told_of(&self, id: &ContainerId) -> Option<(PodRecord, ContainerRecord)> {
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
            pod: self.record.clone(),
            containers: born.iter().filter_map(|one| one.record()).collect(),
            unborn,
        }
    }
}

fn flush(queue: &UnboundedSender<Notice>) -> oneshot::Receiver<()> {
    let (sender, flushed) = oneshot::channel();
    let _ = queue.send(Notice::Flush(sender));
    flushed
}

async fn deliver(shared: Arc<Shared>, mut notices: UnboundedReceiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Event(event) => shared.plugins.observe(&event).await,
            Notice::Flush(done) => drop(done.send(())),
        }
    }
}

async fn observe(
    shared: &Shared,
    kind: PluginEventKind,
    pod: &Arc<PodRecord>,
    container: Option<&ContainerRecord>,
) {
    let event = PluginEvent {
        kind,
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
        observe(shared, kind, &pod, None).await;
    }
    Err(refused)
}

/// Creates a planned container, which plugins adjust before. A creation that fails after plugins were told is followed
/// by its end.
pub(super) async fn create(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    planned: ContainerRecord,
    engine: &KeeperEngine,
) -> Result<Created, Error> {
    if !shared.plugins.any() {
        return build(shared, pod, planned).await;
    }
    let (told, mut last) = (Arc::new(pod.clone()), planned.clone());
    let result = match adjust(shared, pod, planned, engine).await {
        Ok(adjusted) => {
            last = adjusted.clone();
            build(shared, pod, adjusted).await
        }
        Err(error) => Err(error),
    };
    let kinds: &[PluginEventKind] = match &result {
        Ok(_) => &[PluginEventKind::ContainerCreated],
        Err(_) => &[
            PluginEventKind::ContainerStopped,
            PluginEventKind::ContainerRemoved,
        ],
    };
    for kind in kinds {
        observe(shared, *kind, &told, Some(&last)).await;
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
    adjusted.apply(&mut plan).map_err(unmet)?;
    record.plan = Arc::new(plan);
    Ok(record)
}

/// Starts a container with `start`, which plugins may refuse, and tells them when it runs.
pub(super) async fn start(
    shared: &Shared,
    told: Option<(PodRecord, ContainerRecord)>,
    start: impl Future<Output = Result<Started, Error>>,
) -> Result<Started, Error> {
    let Some((pod, record)) = told.filter(|_| shared.plugins.any()) else {
        return start.await;
    };
    shared.plugins.start_container(&pod, &record).await?;
    let started = start.await?;
    let record = record.started(&started);
    let kind = PluginEventKind::ContainerStarted;
    observe(shared, kind, &Arc::new(pod), Some(&record)).await;
    Ok(started)
}

/// Tells plugins of changed limits.
pub(super) async fn updated(shared: &Shared, pod: PodRecord, record: &ContainerRecord) {
    let kind = PluginEventKind::ContainerUpdated;
    observe(shared, kind, &Arc::new(pod), Some(record)).await;
}
