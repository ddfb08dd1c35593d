//! The effects on containers, each a task of its own that comes back as a word in the mailbox.

use std::sync::Arc;

use coracle_runtime::id::ContainerId;
use coracle_runtime::wasm::EngineRef;

use super::{Driver, Note, Word};
use crate::host::{Launch, blocking};
use crate::lifecycle::error::{Error, Kind};
use crate::lifecycle::state::Effect;

impl Driver {
    /// The engine that the pod's guests run on.
    pub(super) fn engine(&self) -> EngineRef {
        let pid = self
            .keeper_process
            .as_ref()
            .map_or(0, |process| process.pid());
        self.shared.host.engine_of(&self.engine_hash, pid)
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
        let engine = self.engine();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let parts = container.plan.clone().zip(self.keeper.clone());
        let (shared, pod, wish) = (
            Arc::clone(&self.shared),
            self.record.id.clone(),
            Arc::clone(&container.wish),
        );
        let (id, word_id, log_directory) = (
            id.clone(),
            id.clone(),
            self.record.wish.log_directory.clone(),
        );
        self.effect(
            async move {
                let silent = || format!("start container {id}: its keeper does not answer");
                let (plan, keeper) = parts.ok_or_else(|| Error::new(Kind::Io, silent()))?;
                let launch = Launch {
                    pod,
                    id,
                    log_directory,
                    wish,
                    plan,
                    keeper,
                    engine,
                };
                shared.host.launch(launch).await
            },
            |result| Note::Container(word_id, Word::Launched(result)),
        );
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
        if let Err(error) = self.shared.host.signal(process, signal) {
            // The deadline that is armed ends it all the same.
            tracing::warn!(container = %id, error = error.chain(), "the stop signal was not sent");
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
        let (shared, keeper, cgroup) = (
            Arc::clone(&self.shared),
            self.keeper.clone(),
            self.cgroup_of(id),
        );
        let (pod, id, word_id) = (self.record.id.clone(), id.clone(), id.clone());
        self.effect(
            async move { shared.host.clean_up(keeper, &pod, &id, cgroup).await },
            |result| Note::Container(word_id, Word::Cleaned(result)),
        );
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
                    .host
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
