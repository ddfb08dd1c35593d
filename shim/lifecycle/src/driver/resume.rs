//! The part of a driver that takes over a pod from an earlier daemon: from records, keeper and exit records to phases.

use std::sync::Arc;

use coracle_control::keeper::{Greeting, KeeperContainer};
use coracle_control::process::Process;
use coracle_network::Attachment;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};
use tracing::Instrument as _;

use super::{Connection, Container, Driver};
use crate::clock;
use crate::disk::FoundContainer;
use crate::host::Owned;
use crate::record::ContainerRecord;
use crate::state::{
    ContainerPhase, Effect, Ended, Event, PodEvent, PodPhase, ProcessFact, Run, Stage,
};
use crate::store::Slot;

/// What recovery found of a pod in addition to its record.
pub struct Resumed {
    /// Its containers.
    pub containers: Vec<FoundContainer>,
    /// Its keeper, if that process lives.
    pub keeper: Option<FoundKeeper>,
}

/// A keeper that lives.
pub struct FoundKeeper {
    /// Its process.
    pub process: Arc<Process>,
    /// The connection to it; none if it does not answer.
    pub connection: Option<Connection>,
}

impl Driver {
    /// Takes over what an earlier daemon left. Unfinished changes are completed or undone; no request is answered yet.
    pub async fn resume(self, found: Resumed) -> Driver {
        let span = self.span();
        self.resume_in_span(found).instrument(span).await
    }

    async fn resume_in_span(mut self, found: Resumed) -> Driver {
        for container in found.containers {
            match container {
                FoundContainer::Readable(record, slot) => self.take_over(*record, slot),
                FoundContainer::Unreadable(id, found) => self.keep_unreadable(id, &found),
            }
        }
        self.show_pod();
        match found.keeper {
            Some(keeper) => self.resume_with(keeper).await,
            None if self.record.phase.live().is_some() => {
                self.return_unstarted(&[]).await;
                self.keeper_ended().await;
            }
            None => {}
        }
        self.resume_phases().await;
        self
    }

    pub(super) fn take_over(&mut self, record: ContainerRecord, slot: Slot) {
        let id = record.id.clone();
        self.shared.host.claim_images(&id, &record.plan);
        self.shared.registry.add_container(&id, &self.record.id);
        // Requests may wait for a container that could not be read before.
        let waiting = self.containers.remove(&id).map(|before| before.waiting);
        let (config, plan) = (record.config.as_ref(), record.plan.as_ref());
        let kept = (config, plan, &record.requested);
        let namespace = &self.record.config.name.namespace;
        let share = self.shared.requests.take_over(namespace, &kept);
        let container = Container {
            requested: record.requested,
            plan: Some(record.plan),
            phase: record.phase,
            waiting: waiting.unwrap_or_default(),
            ..Container::new(id.clone(), record.config, share, slot, record.created_at)
        };
        self.containers.insert(id.clone(), container);
        self.show(&id);
    }

    async fn resume_with(&mut self, keeper: FoundKeeper) {
        self.keep(Some(keeper.process));
        let Some(connection) = keeper.connection else {
            self.find_processes(&[]).await;
            self.give_up_starts().await;
            self.reconnect();
            return;
        };
        let Connection {
            keeper,
            greeting,
            events,
        } = connection;
        let Greeting {
            protocol,
            engine_hash,
            containers,
        } = greeting;
        self.find_processes(&containers).await;
        self.return_unstarted(&containers).await;
        for greeted in &containers {
            self.finish_start(greeted).await;
        }
        let starting = containers.iter().filter(|greeted| greeted.starting);
        let starting: Vec<ContainerId> = starting.map(|greeted| greeted.id.clone()).collect();
        let greeting = Greeting {
            protocol,
            engine_hash,
            containers,
        };
        self.connected(Connection {
            keeper,
            greeting,
            events,
        })
        .await;
        for id in &starting {
            self.await_start(id);
        }
    }

    /// Finds the process of each running container by pid and start time. A container without a process and without an
    /// exit record has ended with an unknown exit.
    async fn find_processes(&mut self, greeted: &[KeeperContainer]) {
        for (id, run) in self.running() {
            if greeted
                .iter()
                .any(|greeted| greeted.id == id && greeted.exit.is_some())
            {
                continue;
            }
            self.find_process(&id, run).await;
        }
    }

    /// The same for one container.
    pub(super) async fn find_process(&mut self, id: &ContainerId, run: Run) {
        // A container that a boot or a stop has ended is skipped: its pid may belong to another process.
        let opened = match self.record.phase.live() {
            Some(_) => Process::open(run.process.pid, run.process.start_time),
            None => Ok(None),
        };
        match opened {
            Ok(Some(process)) => self.hold(id, Arc::new(process)),
            Ok(None) => self.exited_as_recorded(id, unseen()).await,
            Err(error) => self.set_unreadable(id, error.chain()),
        }
    }

    fn running(&self) -> Vec<(ContainerId, Run)> {
        let with_run = |container: &Container| Some((container.id.clone(), container.phase.run()?));
        self.containers.values().filter_map(with_run).collect()
    }

    /// A start that the keeper carried out and that was not recorded.
    async fn finish_start(&mut self, greeted: &KeeperContainer) {
        let id = &greeted.id;
        let starting =
            |container: &&Container| matches!(container.phase, ContainerPhase::Starting(_));
        let Some(container) = self.containers.get(id).filter(starting) else {
            return;
        };
        if greeted.starting {
            return;
        }
        let created_at = container.created_at;
        if let Some(Exit {
            cause: Cause::StartFailed(text),
            finished_at,
            ..
        }) = &greeted.exit
        {
            let ended = Ended::never_ran((*finished_at).max(created_at), text);
            self.step_or_log(id, Event::StartFailed(ended)).await;
            return;
        }
        // It has ended: its pid may belong to another process, and the same greeting reports its exit.
        let fact = greeted.process.as_ref().map(|process| ProcessFact {
            pid: process.pid(),
            start_time: process.start_time(),
        });
        if let Some(process) = fact.and_then(open) {
            self.hold(id, process);
        }
        let process = fact.unwrap_or(ProcessFact {
            pid: 0,
            start_time: 0,
        });
        let run = Run::new(process, greeted.started_at, created_at);
        self.step_or_log(id, Event::Started(run)).await;
    }

    /// Starts whose result only a silent keeper knows: any process of theirs is killed.
    async fn give_up_starts(&mut self) {
        let starting =
            |container: &&Container| matches!(container.phase, ContainerPhase::Starting(_));
        let ids: Vec<ContainerId> = self
            .containers
            .values()
            .filter(starting)
            .map(|container| container.id.clone())
            .collect();
        for id in ids {
            self.give_up_start(&id).await;
        }
    }

    /// The same for one container.
    pub(super) async fn give_up_start(&mut self, id: &ContainerId) {
        let ended = Ended::judge(0, &unseen(), 0, None);
        self.step_or_log(id, Event::StartFailed(ended)).await;
    }

    /// A start that never reached the keeper was not acknowledged: the container is created, as before.
    async fn return_unstarted(&mut self, greeted: &[KeeperContainer]) {
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            let known = greeted.iter().any(|greeted| greeted.id == id);
            let phase = self.containers.get(&id).map(|container| &container.phase);
            if !matches!(phase, Some(ContainerPhase::Starting(_))) || known {
                continue;
            }
            let recorded = match self.recorded_exit(&id).await {
                Ok(recorded) => recorded,
                Err(error) => {
                    self.set_unreadable(&id, error.chain());
                    continue;
                }
            };
            let Some(container) = self.containers.get_mut(&id) else {
                continue;
            };
            container.phase = match recorded {
                Some(exit) => ContainerPhase::Exited(Ended::judge(0, &exit, 0, None)),
                None => ContainerPhase::Created,
            };
            let saved = super::container::save_container(container).await;
            if let Err(error) = saved {
                tracing::error!(container = container.config.name.name, id = %container.id, error = error.chain(), "a container's record was not saved");
            }
        }
        for id in self.containers.keys() {
            self.show(id);
        }
    }

    /// Repeats the effects of the phases that were recorded.
    async fn resume_phases(&mut self) {
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.resume_phase(&id).await;
        }
        if matches!(self.record.phase, PodPhase::Stopping(..))
            && let Err(error) = self.pod_step(PodEvent::StopRequested).await
        {
            tracing::error!(error = error.chain(), "a stop was not resumed");
        }
    }

    /// The same for one container.
    pub(super) async fn resume_phase(&mut self, id: &ContainerId) {
        let phase = self.containers.get(id).map(|held| held.phase.clone());
        match phase {
            // No client knows its id.
            Some(ContainerPhase::Creating(_)) => {
                if let Some(container) = self.containers.get_mut(id) {
                    let text = "the daemon ended while the container was being created";
                    container.failure = Some(super::Error::new(super::Kind::Bug, text));
                }
                self.step_or_log(id, Event::BuildFailed).await;
            }
            Some(ContainerPhase::Stopping(_, stop)) if stop.stage == Stage::Requested => {
                self.act(id, Effect::Signal)
            }
            Some(ContainerPhase::Stopping(..)) => self.act(id, Effect::Kill),
            Some(ContainerPhase::Exited(_)) => self.act(id, Effect::CleanUp),
            _ => {}
        }
    }

    /// Adds what this pod owns to what the sweep must leave alone.
    pub fn add_to(&self, owned: &mut Owned) {
        let id = self.record.id.as_str();
        owned.pods.insert(id.to_owned());
        owned.parents.insert(self.record.cgroup_parent.clone());
        if let Some(live) = self.record.phase.live() {
            owned.live.insert(id.to_owned());
            owned.attachments.extend(live.attachment.clone());
        }
        owned.has_unreadable |= self.has_unreadable();
        for container in &self.dead {
            owned.dead.insert(container.as_str().to_owned());
            let directory = self
                .shared
                .host
                .layout()
                .container_directory(&self.record.id, container);
            owned.debris.push(directory);
        }
    }

    /// Leaves the directories of containers without a record to the sweep.
    pub fn set_dead(&mut self, dead: Vec<ContainerId>) {
        self.dead = dead;
    }

    /// Whether the pod has that container.
    pub fn holds(&self, container: &ContainerId) -> bool {
        self.containers.contains_key(container)
    }

    /// Its attachment to the network, while it has one.
    pub fn attachment(&self) -> Option<Attachment> {
        self.record.phase.live()?.attachment.clone()
    }

    /// The engine of its keeper; empty when unknown.
    pub fn engine_hash(&self) -> &str {
        &self.engine_hash
    }
}

/// The end of a container whose exit nobody observed.
fn unseen() -> Exit {
    Exit {
        code: 255,
        signal: None,
        finished_at: clock::wall(),
        cause: Cause::Unknown,
        message: String::new(),
    }
}

/// The process that a greeting names, if it is still the same one.
fn open(fact: ProcessFact) -> Option<Arc<Process>> {
    Process::open(fact.pid, fact.start_time)
        .ok()
        .flatten()
        .map(Arc::new)
}
