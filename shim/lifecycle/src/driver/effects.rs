//! The effects on containers, each a task of its own that comes back as a word in the mailbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_runtime::process::Process;
use coracle_spec::PidSpace;
use coracle_spec::id::ContainerId;

use super::container::missing;
use super::{Driver, Note, Purpose, Word};
use crate::blocking::blocking;
use crate::error::{Error, Kind};
use crate::host::{KeeperEngine, Launch, Launched};
use crate::record::Payload;
use crate::state::{ContainerPhase, Effect};
use crate::store::Slot;

/// How often, and for how long after the first time, it is looked whether a stop signal can be heard by now.
const HEARING: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

/// Sends a stop signal again once the program listens to it. The kernel drops a signal for the first process of a pid
/// namespace that has no handler for it yet, and a container may be stopped before its program came that far.
async fn signal_again(process: Arc<Process>, signal: i32, mut was_deaf: bool) {
    let (mut pause, until) = (HEARING.0, Instant::now() + HEARING.1);
    while Instant::now() < until && process.is_alive() {
        match process.hears(signal) {
            Some(false) => was_deaf = true,
            Some(true) if was_deaf => {
                let _ = process.signal(signal);
                return;
            }
            // It heard the first one, or is gone.
            Some(true) | None => return,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

impl Driver {
    /// The engine that the pod's guests run on.
    pub(super) fn engine(&self) -> KeeperEngine {
        let pid = self
            .keeper_process
            .as_ref()
            .map_or(0, |process| process.pid());
        KeeperEngine {
            hash: self.engine_hash.clone(),
            pid,
        }
    }

    pub(super) fn act(&mut self, id: &ContainerId, effect: Effect) {
        match effect {
            Effect::Launch => self.launch(id),
            Effect::Signal => self.signal(id),
            Effect::Kill => self.kill(id),
            Effect::CleanUp => self.clean_up(id),
            Effect::Forget => self.forget(id),
        }
    }

    fn launch(&mut self, id: &ContainerId) {
        let (shared, launch) = (
            Arc::clone(&self.shared),
            self.launch_parts(id, self.engine()),
        );
        let silent = format!("start container {id}: its keeper does not answer");
        self.launch_by(id, async move {
            let launch = launch.ok_or_else(|| Error::new(Kind::Io, silent))?;
            shared.host().launch(launch).await
        });
    }

    /// Waits for the end of a start that an earlier daemon had asked the keeper for, as if it were this one's.
    pub(super) fn await_start(&mut self, id: &ContainerId) {
        let phase = self.containers.get(id).map(|container| &container.phase);
        let (Some(ContainerPhase::Starting(_)), Some(keeper)) = (phase, self.keeper.clone()) else {
            return;
        };
        tracing::info!(container = %id, "its start is still under way");
        let (shared, container) = (Arc::clone(&self.shared), id.clone());
        self.launch_by(id, async move {
            shared.host().await_launch(&keeper, &container).await
        });
    }

    /// Runs what ends with the container launched or not.
    fn launch_by(
        &mut self,
        id: &ContainerId,
        launch: impl Future<Output = Result<Launched, Error>> + Send + 'static,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (shared, pod) = (Arc::clone(&self.shared), self.record.id.clone());
        let (id, word_id) = (id.clone(), id.clone());
        self.effect(
            async move {
                match launch.await {
                    Err(error) if error.kind() == Kind::StartFailed => {
                        let code = shared.host().exit_code(&pod, &id).await;
                        Ok(Err((error, code)))
                    }
                    other => other.map(Ok),
                }
            },
            |result| {
                let word = match result {
                    Ok(Ok(launched)) => Word::Launched(Ok(launched)),
                    Ok(Err((error, code))) => Word::NeverRan(error, code),
                    Err(error) => Word::Launched(Err(error)),
                };
                Note::Container(word_id, word)
            },
        );
    }

    /// All that a launch of this container, or an exec in it, needs; `None` without a plan or a keeper.
    fn launch_parts(&self, id: &ContainerId, engine: KeeperEngine) -> Option<Launch> {
        let container = self.containers.get(id)?;
        Some(Launch {
            pod: self.record.id.clone(),
            id: id.clone(),
            userns: self.record.wish.userns.is_some(),
            log_directory: self.record.wish.log_directory.clone(),
            wish: Arc::clone(&container.wish),
            plan: container.plan.clone()?,
            keeper: self.keeper.clone()?,
            engine,
        })
    }

    /// What it takes to reach into container `id`. Errors: Missing; WrongPhase when it does not run.
    pub(super) fn entry(&self, id: &ContainerId, purpose: Purpose) -> Result<Box<Launch>, Error> {
        let container = self.containers.get(id).ok_or_else(|| missing(id))?;
        let phase = &container.phase;
        let admits = match phase {
            ContainerPhase::Running(_) => true,
            ContainerPhase::Stopping(..) => purpose == Purpose::Attach,
            _ => false,
        };
        let verb = purpose.words();
        if !admits {
            let text = format!("cannot {verb} container {id}: it is {}", phase.name());
            return Err(Error::new(Kind::WrongPhase, text));
        }
        let silent = || format!("{verb} container {id}: its keeper does not answer");
        let parts = self.launch_parts(id, self.engine());
        parts
            .map(Box::new)
            .ok_or_else(|| Error::new(Kind::Io, silent()))
    }

    fn signal(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let signal = container
            .plan
            .as_ref()
            .map_or(libc::SIGTERM, |plan| plan.stop_signal);
        let Some(process) = &container.process else {
            return;
        };
        let was_deaf = process.hears(signal) == Some(false);
        if let Err(error) = self.shared.host.signal(process, signal) {
            // The deadline that is armed ends it all the same.
            tracing::warn!(container = %id, error = error.chain(), "the stop signal was not sent");
        }
        let first_of_its_namespace = matches!(
            container.plan.as_ref().map(|plan| &plan.payload),
            Some(Payload::Linux(linux)) if linux.jail.pid == PidSpace::Own
        );
        if first_of_its_namespace {
            tokio::spawn(signal_again(Arc::clone(process), signal, was_deaf));
        }
    }

    fn kill(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (shared, process, cgroup) = (
            Arc::clone(&self.shared),
            container.process.clone(),
            self.cgroup_of(id),
        );
        let word_id = id.clone();
        self.effect(
            blocking("killing a container", move || {
                shared.host.kill(process.as_deref(), &cgroup)
            }),
            |result| Note::Container(word_id, Word::Cleaned(result)),
        );
    }

    fn clean_up(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (recorded, keeper) = (container.slot.wait_durable(), self.keeper.clone());
        let shared = Arc::clone(&self.shared);
        shared.host.drop_exit(keeper, &self.record.id, id, recorded);
        let (cgroup, word_id) = (self.cgroup_of(id), id.clone());
        self.effect(
            async move { shared.host().clean_up(cgroup).await },
            |result| Note::Container(word_id, Word::Cleaned(result)),
        );
    }

    /// Where the records of a new container go.
    pub(super) fn new_slot(&self, id: &ContainerId) -> Slot {
        let host = &self.shared.host;
        let directory = host.layout().container_directory(&self.record.id, id);
        Slot::new(directory, host.syncer())
    }

    fn forget(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (shared, keeper, cgroup) = (
            Arc::clone(&self.shared),
            self.keeper.clone(),
            self.cgroup_of(id),
        );
        let (pod, id, word_id) = (self.record.id.clone(), id.clone(), id.clone());
        self.effect(
            async move {
                shared
                    .host()
                    .forget_container(keeper, &pod, &id, cgroup)
                    .await
            },
            |result| Note::Container(word_id, Word::Forgotten(result)),
        );
    }

    /// Known before a plan is: the cgroup follows from the ids.
    fn cgroup_of(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.record.cgroup_parent.trim_end_matches('/'))
    }
}
