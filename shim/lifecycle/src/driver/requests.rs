//! The part of a driver that admits or refuses requests about containers; an admitted request waits for its phase.

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::ContainerId;
use coracle_streaming::Share;

use super::container::missing;
use super::{Completion, Container, Created, Driver, Message, Reply, Shared, Waiting, plugins};
use crate::blocking::{blocking, io_error, make_private, pass};
use crate::clock;
use crate::config::ContainerConfig;
use crate::error::{Error, Kind};
use crate::record::{ContainerRecord, PodRecord};
use crate::state::{ContainerPhase, Event, PodPhase, Then};
use crate::store::Slot;

impl Driver {
    pub(super) fn handle_create(
        &mut self,
        config: Arc<ContainerConfig>,
        reply: Reply<ContainerId>,
    ) {
        if !matches!(self.record.phase, PodPhase::Ready(_)) {
            let text = format!(
                "cannot create container {} in sandbox {}: it is {}",
                config.name,
                self.record.id,
                self.record.phase.name()
            );
            let _ = reply.send(Err(Error::new(Kind::WrongPhase, text)));
            return;
        }
        let named = |held: &&mut Container| held.config.name == config.name;
        if let Some(held) = self.containers.values_mut().find(named) {
            join(held, &config, reply);
            return;
        }
        let namespace = &self.record.config.name.namespace;
        let share = self.shared.requests.take(namespace, config.as_ref());
        let refusal = match (ContainerId::random(), share) {
            (Ok(id), Ok(share)) => return self.create(id, config, share, reply),
            (Err(error), _) => io_error("draw a container id", error),
            (_, Err(error)) => {
                Error::because(error.kind(), format!("container {}", config.name), error)
            }
        };
        let _ = reply.send(Err(refusal));
    }

    fn create(
        &mut self,
        id: ContainerId,
        config: Arc<ContainerConfig>,
        share: Share,
        reply: Reply<ContainerId>,
    ) {
        let created_at = clock::wall().max(self.record.created_at);
        let slot = self.new_slot(&id);
        let container = Container::new(id.clone(), Arc::clone(&config), share, slot, created_at);
        let container = Container {
            busy: 1,
            waiting: Waiting {
                create: vec![reply],
                ..Waiting::default()
            },
            ..container
        };
        self.shared.registry.add_container(&id, &self.record.id);
        self.containers.insert(id.clone(), container);
        let (engine, notified) = (self.engine(), self.notified());
        let (shared, pod, completed) = (Arc::clone(&self.shared), self.record.clone(), id.clone());
        self.effect(
            async move {
                let plan = Arc::new(shared.host().plan(&pod, &id, &config, &engine).await?);
                let phase = ContainerPhase::Creating(Then::Keep);
                let record = ContainerRecord {
                    id,
                    config,
                    requested: None,
                    plan,
                    created_at,
                    phase,
                };
                plugins::create(&shared, notified, &pod, record, &engine).await
            },
            |result| Message::Container(completed, Completion::Built(result.map(Box::new))),
        );
    }

    pub(super) async fn handle_start(&mut self, id: ContainerId, reply: Reply<()>) {
        if !matches!(self.record.phase, PodPhase::Ready(_)) {
            let text = format!(
                "cannot start container {id}: its sandbox {} is {}",
                self.record.id,
                self.record.phase.name()
            );
            let _ = reply.send(Err(Error::new(Kind::WrongPhase, text)));
            return;
        }
        let phase = self.containers.get(&id).map(|container| &container.phase);
        if matches!(phase, Some(ContainerPhase::Starting(None))) {
            // A retry gets the result of the first try.
            return self.wait(&id, reply, |waiting| &mut waiting.start);
        }
        match self.step(&id, Event::StartRequested).await {
            Ok(()) => self.wait(&id, reply, |waiting| &mut waiting.start),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) async fn handle_stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
        match self.step(&id, Event::StopRequested(grace)).await {
            Ok(()) => self.wait(&id, reply, |waiting| &mut waiting.stop),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) async fn handle_remove(&mut self, id: ContainerId, reply: Reply<()>) {
        match self.step(&id, Event::RemoveRequested).await {
            Ok(()) => self.wait(&id, reply, |waiting| &mut waiting.remove),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn wait(
        &mut self,
        id: &ContainerId,
        reply: Reply<()>,
        queue: impl FnOnce(&mut Waiting) -> &mut Vec<Reply<()>>,
    ) {
        match self.containers.get_mut(id) {
            Some(container) => queue(&mut container.waiting).push(reply),
            None => drop(reply.send(Err(missing(id)))),
        }
    }

    pub(super) fn handle_reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let refusal = match (self.containers.get(id), &self.keeper) {
            (None, _) => missing(id),
            (Some(container), _) if container.phase.run().is_none() => Error::new(
                Kind::WrongPhase,
                format!(
                    "cannot reopen the log of container {id}: it is {}, not running",
                    container.phase.name()
                ),
            ),
            (Some(_), None) => Error::new(
                Kind::Io,
                format!("reopen the log of container {id}: its keeper does not answer"),
            ),
            (Some(container), Some(keeper)) => {
                let (shared, keeper, id) = (Arc::clone(&self.shared), keeper.clone(), id.clone());
                let directory = self.record.config.log_directory.clone();
                let path = container
                    .plan
                    .as_ref()
                    .map(|plan| plan.log_path.clone())
                    .unwrap_or_default();
                let work = self.shared.work.begin();
                tokio::spawn(async move {
                    let _ = reply.send(
                        shared
                            .host()
                            .reopen_log(&keeper, &id, &directory, &path)
                            .await,
                    );
                    drop(work);
                });
                return;
            }
        };
        let _ = reply.send(Err(refusal));
    }
}

/// A create with a name in use: a retry of the same request joins the first try, any other is refused.
fn join(held: &mut Container, config: &Arc<ContainerConfig>, reply: Reply<ContainerId>) {
    let early = matches!(
        held.phase,
        ContainerPhase::Creating(_) | ContainerPhase::Created
    );
    let requested = held.requested.as_deref().unwrap_or(&held.config);
    if early && *requested == **config {
        // Reconciling answers it: at once, or together with the first try.
        held.waiting.create.push(reply);
        return;
    }
    let (id, phase) = (&held.id, held.phase.name());
    let text = format!(
        "container name {} belongs to {id}, which is {phase}",
        config.name
    );
    let _ = reply.send(Err(Error::new(Kind::NameTaken, text)));
}

/// Records a planned container and builds it.
pub(super) async fn build(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    record: ContainerRecord,
) -> Result<Created, Error> {
    let (shared, pod) = (Arc::clone(shared), pod.clone());
    blocking("creating a container", move || make(&shared, &pod, record)).await
}

/// The same. Blocks.
fn make(shared: &Shared, pod: &PodRecord, record: ContainerRecord) -> Result<Created, Error> {
    // What the image and the node add to the request stays in memory as long.
    let kept = (record.plan.as_ref(), &record.requested);
    let share = shared.requests.take(&pod.config.name.namespace, &kept);
    let share = share.map_err(|error| {
        let text = format!(
            "container {}, with what image {:?} gives it",
            record.config.name, record.config.image
        );
        Error::because(error.kind(), text, error)
    })?;
    pass("create.record")?;
    let directory = shared
        .host
        .layout()
        .container_directory(&pod.id, &record.id);
    make_private(&directory)?;
    let mut slot = Slot::new(directory, shared.host.syncer());
    let saved = slot.save(&record);
    saved
        .map_err(|error| io_error(format!("save the record of container {}", record.id), error))?;
    shared
        .host
        .build(pod, &record.id, &record.config, &record.plan)?;
    Ok(Created {
        config: record.config,
        requested: record.requested,
        plan: record.plan,
        share,
        slot,
    })
}
