//! The part of a driver that runs effects on containers, each in a task that sends its completion to the mailbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_control::process::Process;
use coracle_spec::PidNamespaceMode;
use coracle_spec::id::ContainerId;

use super::container::missing;
use super::{Completion, Driver, Message, Purpose, plugins};
use crate::clock;
use crate::error::{Error, Kind};
use crate::host::{KeeperEngine, NodeHookRun, StartRequest, Started};
use crate::record::Payload;
use crate::state::{ContainerPhase, Effect};
use crate::store::Slot;

/// How often, and for how long after the first time, to check the process for a handler of the stop signal.
const SIGNAL_RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

/// Sends the stop signal again once the program has a handler for it. The kernel drops a signal for the first process
/// of a pid namespace without a handler, and a container may be stopped before its program installed one.
async fn signal_again(process: Arc<Process>, signal: i32, mut was_ignored: bool) {
    let (mut pause, until) = (SIGNAL_RETRY.0, Instant::now() + SIGNAL_RETRY.1);
    while Instant::now() < until && process.is_alive() {
        match process.handles_signal(signal) {
            Some(false) => was_ignored = true,
            Some(true) if was_ignored => {
                let _ = process.signal(signal);
                return;
            }
            // It handled the first signal, or has ended.
            Some(true) | None => return,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

impl Driver {
    /// The engine that the pod's Wasm containers run on.
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
            Effect::Start => self.start(id),
            Effect::Signal => self.signal(id),
            Effect::Kill => self.kill(id),
            Effect::CleanUp => self.clean_up(id),
            Effect::Forget => self.forget(id),
        }
    }

    fn start(&mut self, id: &ContainerId) {
        let (shared, request) = (
            Arc::clone(&self.shared),
            self.start_request(id, self.engine()),
        );
        let silent = format!("start container {id}: its keeper does not answer");
        let any = self.shared.plugins.any();
        let asked = any.then(|| self.notified_of(id)).flatten();
        let notified = self.notified();
        self.run_start(id, async move {
            let request = request.ok_or_else(|| Error::new(Kind::Io, silent))?;
            plugins::may_start(&shared, notified, asked).await?;
            shared.host().start_container(request).await
        });
    }

    /// Waits for the end of a start that an earlier daemon had requested from the keeper, as for its own.
    pub(super) fn await_start(&mut self, id: &ContainerId) {
        let phase = self.containers.get(id).map(|container| &container.phase);
        let (Some(ContainerPhase::Starting(_)), Some(keeper)) = (phase, self.keeper.clone()) else {
            return;
        };
        tracing::info!(container = self.name_of(id), %id, "the start of a container is still under way");
        let (shared, container) = (Arc::clone(&self.shared), id.clone());
        self.run_start(id, async move {
            shared.host().await_start(&keeper, &container).await
        });
    }

    /// Runs `start` and sends its result as the completion of a start.
    fn run_start(
        &mut self,
        id: &ContainerId,
        start: impl Future<Output = Result<Started, Error>> + Send + 'static,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (shared, pod) = (Arc::clone(&self.shared), self.record.id.clone());
        let hooks = self.node_hooks(id);
        let (id, completed) = (id.clone(), id.clone());
        self.effect(
            async move {
                match start.await {
                    Ok(started) => {
                        if let Some(hooks) = hooks {
                            let pid = Some(started.process.pid());
                            let hooks = NodeHookRun { pid, ..hooks };
                            shared.host().run_node_hooks(hooks).await;
                        }
                        Ok(Ok(started))
                    }
                    Err(error) if error.kind() == Kind::StartFailed => {
                        let code = shared.host().exit_code(&pod, &id).await;
                        Ok(Err((error, code)))
                    }
                    Err(error) => Err(error),
                }
            },
            |result| {
                let completion = match result {
                    Ok(Ok(started)) => Completion::Started(Ok(started)),
                    Ok(Err((error, code))) => Completion::NeverRan(error, code),
                    Err(error) => Completion::Started(Err(error)),
                };
                Message::Container(completed, completion)
            },
        );
    }

    /// The programs of the node that go with a container's end, or with a pid its start; `None` without any.
    fn node_hooks(&self, id: &ContainerId) -> Option<NodeHookRun> {
        let plan = Arc::clone(self.containers.get(id)?.plan.as_ref()?);
        let has_some = match &plan.payload {
            Payload::Linux(linux) => !linux.node_hooks.is_empty(),
            Payload::Wasm(_) => false,
        };
        has_some.then(|| NodeHookRun {
            pod: self.record.id.clone(),
            id: id.clone(),
            plan,
            pid: None,
        })
    }

    /// Everything that a start of this container, or an exec in it, needs; `None` without a plan or a keeper.
    fn start_request(&self, id: &ContainerId, engine: KeeperEngine) -> Option<StartRequest> {
        let container = self.containers.get(id)?;
        Some(StartRequest {
            pod: self.record.id.clone(),
            namespace: self.record.config.name.namespace.clone(),
            id: id.clone(),
            userns: self.record.config.userns.is_some(),
            log_directory: self.record.config.log_directory.clone(),
            config: Arc::clone(&container.config),
            plan: container.plan.clone()?,
            keeper: self.keeper.clone()?,
            engine,
        })
    }

    /// What an exec or attach needs of container `id`. Errors: Missing; WrongPhase when it does not run.
    pub(super) fn entry(
        &self,
        id: &ContainerId,
        purpose: Purpose,
    ) -> Result<Box<StartRequest>, Error> {
        let container = self.containers.get(id).ok_or_else(|| missing(id))?;
        let phase = &container.phase;
        let admits = match phase {
            ContainerPhase::Running(_) => true,
            ContainerPhase::Stopping(..) => purpose == Purpose::Attach,
            _ => false,
        };
        let verb = purpose.verb();
        if !admits {
            let text = format!("cannot {verb} container {id}: it is {}", phase.name());
            return Err(Error::new(Kind::WrongPhase, text));
        }
        let silent = || format!("{verb} container {id}: its keeper does not answer");
        let parts = self.start_request(id, self.engine());
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
        let payload = container.plan.as_ref().map(|plan| &plan.payload);
        // Programs of images get the plain signal that they know.
        let grace = match (payload, &container.phase) {
            (Some(Payload::Wasm(_)), ContainerPhase::Stopping(_, stop)) => {
                Some(clock::until(stop.kill_at))
            }
            _ => None,
        };
        let was_ignored = process.handles_signal(signal) == Some(false);
        if let Err(error) = self.shared.host.signal(process, signal, grace) {
            // The deadline of the grace period still ends it.
            tracing::warn!(container = self.name_of(id), %id, error = error.chain(), "the stop signal was not sent");
        }
        let first_of_its_namespace = matches!(
            payload,
            Some(Payload::Linux(linux)) if linux.jail.pid == PidNamespaceMode::Own
        );
        if first_of_its_namespace {
            tokio::spawn(signal_again(Arc::clone(process), signal, was_ignored));
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
        let completed = id.clone();
        self.effect(
            async move { shared.host().kill(process, cgroup).await },
            |result| Message::Container(completed, Completion::Cleaned(result)),
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
        let (cgroup, completed) = (self.cgroup_of(id), id.clone());
        let hooks = self.node_hooks(id);
        self.effect(
            async move {
                shared.host().clean_up(cgroup).await?;
                if let Some(hooks) = hooks {
                    shared.host().run_node_hooks(hooks).await;
                }
                Ok(())
            },
            |result| Message::Container(completed, Completion::Cleaned(result)),
        );
    }

    /// The directory for the records of a new container.
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
        let (pod, id, completed) = (self.record.id.clone(), id.clone(), id.clone());
        self.effect(
            async move {
                shared
                    .host()
                    .forget_container(keeper, &pod, &id, cgroup)
                    .await
            },
            |result| Message::Container(completed, Completion::Forgotten(result)),
        );
    }

    /// Also known before there is a plan: the path follows from the ids.
    fn cgroup_of(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.record.cgroup_parent.trim_end_matches('/'))
    }
}
