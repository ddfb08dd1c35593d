//! The part of a driver that changes containers: completions of effects, exits, steps, answers.

use std::sync::Arc;
use std::time::Duration;

use coracle_control::process::Process;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

use super::answers::answer;
use super::{Completion, Container, Created, Driver, Message, Watch, save};
use crate::clock;
use crate::error::{Error, Kind};
use crate::host::Started;
use crate::record::ContainerRecord;
use crate::state::{ContainerPhase, Ended, Event, ProcessFact, Refused, Run, step};
use crate::unreadable::container_view;
use crate::view::{ContainerKind, EventKind};

/// How long a keeper may take to report an exit that the kernel has already reported.
const KEEPER_EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// The same limit when the process was killed.
const KEEPER_KILL_TIMEOUT: Duration = Duration::from_millis(200);
/// Exit code of a process that was killed: 128 + SIGKILL.
const KILLED: i32 = 137;

impl Container {
    /// Its record; `None` before it is planned.
    pub(super) fn record(&self) -> Option<ContainerRecord> {
        Some(ContainerRecord {
            id: self.id.clone(),
            config: Arc::clone(&self.config),
            requested: self.requested.clone(),
            plan: Arc::clone(self.plan.as_ref()?),
            created_at: self.created_at,
            phase: self.phase.clone(),
        })
    }

    /// Whether it has no process and no effect under way.
    pub(super) fn is_quiet(&self) -> bool {
        !self.phase.is_live()
            && !matches!(self.phase, ContainerPhase::Creating(_))
            && self.busy == 0
    }
}

fn refused(id: &ContainerId, refused: Refused) -> Error {
    let kind = match refused {
        Refused::Start { .. } => Kind::WrongPhase,
        Refused::Impossible { .. } => Kind::Bug,
    };
    Error::because(kind, format!("container {id}"), refused)
}

pub(super) fn missing(id: &ContainerId) -> Error {
    Error::new(Kind::Missing, format!("there is no container {id}"))
}

impl Driver {
    pub(super) async fn pass_deadlines(&mut self) {
        let now = clock::boot();
        let due = |container: &&Container| container.phase.deadline().is_some_and(|at| at <= now);
        let ids: Vec<ContainerId> = self
            .containers
            .values()
            .filter(due)
            .map(|container| container.id.clone())
            .collect();
        for id in ids {
            self.step_or_log(&id, Event::DeadlinePassed).await;
        }
    }

    pub(super) async fn handle_completion(&mut self, id: ContainerId, completion: Completion) {
        if let Some(container) = self.containers.get_mut(&id)
            && !matches!(completion, Completion::ProcessEnded(_))
        {
            container.busy = container.busy.saturating_sub(1);
        }
        match completion {
            Completion::Built(result) => self.built(&id, result).await,
            Completion::Started(Ok(started)) => self.started(&id, started).await,
            Completion::Started(Err(error)) => self.never_ran(&id, error, None).await,
            Completion::NeverRan(error, code) => self.never_ran(&id, error, code).await,
            Completion::Cleaned(Ok(())) => {}
            Completion::Cleaned(Err(error)) => {
                if let Some(container) = self.containers.get_mut(&id)
                    && matches!(container.phase, ContainerPhase::Unreadable(_))
                {
                    answer(&mut container.waiting.stop, &Err(error.clone()));
                }
                tracing::error!(container = self.name_of(&id), %id, error = error.chain(), "an effect on a container failed");
            }
            // A removal can run twice; the other run has already removed the container.
            Completion::Forgotten(Ok(())) if !self.containers.contains_key(&id) => {}
            Completion::Forgotten(Ok(())) => self.step_or_log(&id, Event::Removed).await,
            Completion::Forgotten(Err(error)) => self.forgetting_failed(&id, &error),
            Completion::ProcessEnded(exit) => self.exited(&id, exit).await,
            Completion::Changed(result) => self.changed(&id, result).await,
        }
    }

    async fn built(&mut self, id: &ContainerId, result: Result<Box<Created>, Error>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let failure = match result {
            Ok(made) => {
                (container.config, container.requested) = (made.config, made.requested);
                (container.plan, container.slot) = (Some(made.plan), made.slot);
                container.plan_share = Some(made.share);
                self.step(id, Event::Built).await.err()
            }
            Err(error) => Some(error),
        };
        let Some(error) = failure else { return };
        if let Some(container) = self.containers.get_mut(id) {
            container.failure = Some(error);
        }
        self.step_or_log(id, Event::BuildFailed).await;
    }

    async fn started(&mut self, id: &ContainerId, started: Started) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let process = ProcessFact {
            pid: started.process.pid(),
            start_time: started.process.start_time(),
        };
        let run = Run::new(process, started.started_at, container.created_at);
        let early = container.early_exit.take();
        self.hold(id, started.process);
        self.step_or_log(id, Event::Started(run)).await;
        if let Some(exit) = early {
            self.exited(id, exit).await;
        }
    }

    async fn never_ran(&mut self, id: &ContainerId, error: Error, code: Option<i32>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let at = clock::wall().max(container.created_at);
        let mut ended = Ended::never_ran(at, &error.chain());
        ended.code = code.unwrap_or(ended.code);
        container.failure = Some(error);
        self.step_or_log(id, Event::StartFailed(ended)).await;
    }

    /// Stores a container's process and watches for its end.
    pub(super) fn hold(&mut self, id: &ContainerId, process: Arc<Process>) {
        let watch = self.watch_container(id.clone(), &process);
        if let Some(container) = self.containers.get_mut(id) {
            container.process = Some(process);
            container.watch = Some(watch);
        }
    }

    fn watch_container(&self, id: ContainerId, process: &Arc<Process>) -> Watch {
        let process = Arc::clone(process);
        self.watch(async move {
            process.ended().await;
            // After a kill the keeper could add only the time.
            let killed = process.exit_status() == Some(KILLED);
            tokio::time::sleep(if killed {
                KEEPER_KILL_TIMEOUT
            } else {
                KEEPER_EXIT_TIMEOUT
            })
            .await;
            let status = process.exit_status();
            let cause = if status.is_some() {
                Cause::Ended
            } else {
                Cause::Unknown
            };
            let (code, finished_at) = (status.unwrap_or(255), clock::wall());
            Message::Container(
                id,
                Completion::ProcessEnded(Exit {
                    code,
                    signal: None,
                    finished_at,
                    cause,
                    message: String::new(),
                }),
            )
        })
    }

    /// A container has ended, as its keeper or the kernel reports.
    pub(super) async fn exited(&mut self, id: &ContainerId, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if matches!(container.phase, ContainerPhase::Starting(_)) {
            container.early_exit = Some(exit);
            return;
        }
        let Some(run) = container.phase.run() else {
            return;
        };
        let cgroup = container
            .plan
            .as_ref()
            .map(|plan| plan.cgroup.as_str())
            .unwrap_or_default();
        // Reads the OOM count, which costs opening a file, only where it can matter.
        let oom_kills = if exit.code == KILLED {
            self.shared.host.oom_kills(cgroup)
        } else {
            0
        };
        let ended = Ended::judge(
            run.started_at,
            &exit,
            oom_kills,
            container.phase.stop_stage(),
        );
        container.watch = None;
        container.process = None;
        self.step_or_log(id, Event::Ended(ended)).await;
    }

    fn forgetting_failed(&mut self, id: &ContainerId, error: &Error) {
        tracing::error!(container = self.name_of(id), %id, error = error.chain(), "a container could not be removed");
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if container.failure.is_some() && container.plan.is_none() {
            // The container was never acknowledged, so no client will ask to remove it; the next start sweeps what
            // remains.
            container.phase = ContainerPhase::Gone;
            return;
        }
        answer(&mut container.waiting.remove, &Err(error.clone()));
        let failure = container.failure.clone().unwrap_or_else(|| error.clone());
        answer(&mut container.waiting.create, &Err(failure));
        self.removal_failed(error);
    }

    /// Applies an event for which no request waits; a failure is logged.
    pub(super) async fn step_or_log(&mut self, id: &ContainerId, event: Event) {
        if let Err(error) = self.step(id, event).await {
            tracing::error!(container = self.name_of(id), %id, error = error.chain(), "a container's change was refused");
        }
    }

    /// Applies an event: decides, saves, publishes, starts the effects.
    pub(super) async fn step(&mut self, id: &ContainerId, event: Event) -> Result<(), Error> {
        let container = self.containers.get_mut(id).ok_or_else(|| missing(id))?;
        let before = container.phase.clone();
        let must_be_saved = matches!(event, Event::StartRequested | Event::Built);
        let decided = step(clock::boot(), before.clone(), event);
        let (next, effects) = decided.map_err(|why| refused(id, why))?;
        container.phase = next;
        if container.phase != before
            && let Err(error) = save_container(container).await
        {
            if must_be_saved {
                container.phase = before;
                return Err(error);
            }
            // The change itself cannot be undone: a later daemon learns of it from keeper, exit record or pidfd.
            tracing::error!(container = container.config.name.name, %id, error = error.chain(), "a container's record was not saved");
        }
        let kind = event_kind(&before, &container.phase);
        let has_changed = container.phase != before;
        if has_changed {
            self.report_container(id, &before);
            self.tell_of_container(id, &before);
        }
        self.show(id);
        if let Some(kind) = kind {
            self.publish_event(kind, id.as_str());
        }
        for effect in effects {
            self.act(id, effect);
        }
        Ok(())
    }

    /// Publishes the container's snapshot, once clients may see it.
    pub(super) fn show(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let hidden = matches!(
            container.phase,
            ContainerPhase::Creating(_) | ContainerPhase::Gone
        );
        let unborn = container.failure.is_some()
            && matches!(container.phase, ContainerPhase::Removing(None));
        if hidden || unborn {
            return;
        }
        let pod = &self.record.id;
        let view = match (container.record(), &container.phase) {
            (Some(record), _) => record.view(pod),
            (None, ContainerPhase::Unreadable(why)) => {
                container_view(id, pod, Arc::clone(&container.config), why)
            }
            (None, _) => return,
        };
        if let Some(plan) = &container.plan {
            let kind = ContainerKind::from(&plan.payload);
            self.shared.cache.show_kind(id, kind);
        }
        self.shared.cache.show_container(view);
    }

    pub(super) fn reconcile_containers(&mut self) {
        let mut gone = Vec::new();
        self.answer_containers();
        for container in self.containers.values() {
            if container.phase == ContainerPhase::Gone {
                gone.push(container.id.clone());
            }
        }
        for id in gone {
            self.containers.remove(&id);
            self.shared.registry.drop_container(&id);
            if self.shared.cache.hide_container(&id).is_some() {
                self.publish_event(EventKind::Deleted, id.as_str());
            }
        }
    }

    pub(super) fn publish_event(&self, kind: EventKind, id: &str) {
        let cache = &self.shared.cache;
        let pod = cache
            .pod(&self.record.id)
            .unwrap_or_else(|| Arc::new(self.record.view()));
        cache.publish(kind, id, clock::wall(), pod);
    }
}

/// The event for a change of state, if there is one.
fn event_kind(before: &ContainerPhase, after: &ContainerPhase) -> Option<EventKind> {
    use ContainerPhase::{Created, Creating, Exited, Removing, Running, Starting, Stopping};
    match (before, after) {
        (Creating(_), Created) => Some(EventKind::Created),
        (Starting(_), Running(_) | Stopping(..)) => Some(EventKind::Started),
        (Starting(_) | Running(_) | Stopping(..), Exited(_) | Removing(_)) => {
            Some(EventKind::Stopped)
        }
        _ => None,
    }
}

pub(super) async fn save_container(container: &mut Container) -> Result<(), Error> {
    let site = match &container.phase {
        ContainerPhase::Removing(_) | ContainerPhase::Gone | ContainerPhase::Unreadable(_) => {
            return Ok(());
        }
        ContainerPhase::Created => Some("create.ready"),
        ContainerPhase::Running(_) => Some("start.record"),
        ContainerPhase::Exited(_) => Some("exit.record"),
        ContainerPhase::Creating(_)
        | ContainerPhase::Starting(_)
        | ContainerPhase::Stopping(..) => None,
    };
    match container.record() {
        Some(record) => save(site, &mut container.slot, record).await,
        None => Ok(()),
    }
}
