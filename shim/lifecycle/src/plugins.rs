//! Plugins as the lifecycle sees them: programs of the operator that learn of changes and may adjust containers.
//!
//! Called by: drivers, in effects and in a queue of each pod, never in a driver's own task. Implemented by: the shim's
//! `nri`; [`NoPlugins`] where there are none.
//! Invariants: without a plugin a change costs one relaxed load; whatever waits for a plugin has a deadline; an
//! adjustment is applied whole, or the creation fails.
//! Must not know: the protocol of plugins, which plugins there are.

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::{ResourceLimit, Scheduling};
use futures_util::future::BoxFuture;

use crate::config::{ContainerConfig, Resources};
use crate::error::{Error, Kind};
use crate::host::EffectFuture;
use crate::record::{ContainerRecord, LinuxPlan, NetDevice, Payload, Plan, PodRecord};

/// Most bytes of arguments, and of environment, after an adjustment.
const MAX_BYTES: usize = 1 << 20;

/// Programs of the operator that take part in the life of pods and containers.
pub trait Plugins: Send + Sync + 'static {
    /// Whether there is any. One relaxed load.
    fn any(&self) -> bool;

    /// How long a stop, or the answer to a request, waits at most until plugins were told of what happened before.
    fn patience(&self) -> Duration;

    /// The pod has its network and is not listed yet. Errors: a plugin refuses it; the pod is then undone.
    fn run_pod<'a>(&'a self, pod: &'a PodRecord) -> EffectFuture<'a, ()>;

    /// The container is planned and nothing of it exists. Returns what plugins adjusted, if anything.
    /// Errors: a plugin refuses it, or an adjustment cannot be made; named with the plugin and the field.
    fn create_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
    ) -> EffectFuture<'a, Option<Box<Adjusted>>>;

    /// The container is about to start. Errors: a plugin refuses it.
    fn start_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
    ) -> EffectFuture<'a, ()>;

    /// The limits of the container are about to change to what `requested` sets; returns what is to be set.
    /// Errors: a plugin refuses it.
    fn update_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
        requested: Resources,
    ) -> EffectFuture<'a, Resources>;

    /// The kubelet changes the limits of the pod as a whole, which has no effect here, and plugins may take part in it.
    /// Errors: a plugin refuses it.
    fn update_pod<'a>(
        &'a self,
        pod: &'a PodRecord,
        overhead: &'a Resources,
        requested: &'a Resources,
    ) -> EffectFuture<'a, ()>;

    /// Something has happened, which no plugin can prevent any more.
    fn observe<'a>(&'a self, event: &'a PluginEvent) -> BoxFuture<'a, ()>;
}

/// No plugins.
#[derive(Debug)]
pub struct NoPlugins;

impl Plugins for NoPlugins {
    fn any(&self) -> bool {
        false
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn run_pod<'a>(&'a self, _: &'a PodRecord) -> EffectFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn create_container<'a>(
        &'a self,
        _: &'a PodRecord,
        _: &'a ContainerRecord,
    ) -> EffectFuture<'a, Option<Box<Adjusted>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn start_container<'a>(
        &'a self,
        _: &'a PodRecord,
        _: &'a ContainerRecord,
    ) -> EffectFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn update_container<'a>(
        &'a self,
        _: &'a PodRecord,
        _: &'a ContainerRecord,
        requested: Resources,
    ) -> EffectFuture<'a, Resources> {
        Box::pin(std::future::ready(Ok(requested)))
    }

    fn update_pod<'a>(
        &'a self,
        _: &'a PodRecord,
        _: &'a Resources,
        _: &'a Resources,
    ) -> EffectFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn observe<'a>(&'a self, _: &'a PluginEvent) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What plugins are told afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginEventKind {
    /// The pod is ready; for plugins that were not asked before.
    PodStarted,
    /// The containers of the pod have ended; its network still exists.
    PodStopped,
    /// The pod is gone.
    PodRemoved,
    /// The container was created.
    ContainerCreated,
    /// The container runs.
    ContainerStarted,
    /// The limits of the container were changed.
    ContainerUpdated,
    /// The container's process has ended, by itself or not.
    ContainerStopped,
    /// The container is gone.
    ContainerRemoved,
}

/// One such event.
#[derive(Clone, Debug)]
pub struct PluginEvent {
    /// What happened.
    pub kind: PluginEventKind,
    /// Its number among the events of the pod: what a plugin was synchronised with holds all up to
    /// [`PodRecords::notified`](crate::PodRecords::notified). `None` if it concerns those alone that were asked before, because
    /// what they were asked about has failed.
    pub number: Option<u64>,
    /// The pod, as it is afterwards.
    pub pod: Arc<PodRecord>,
    /// The container, as it is afterwards; `None` for an event of the pod.
    pub container: Option<Box<ContainerRecord>>,
}

/// What plugins adjusted of a container that is being created.
#[derive(Clone, Debug, PartialEq)]
pub struct Adjusted {
    /// The plugins that did, for messages.
    pub plugins: String,
    /// The config, with what they changed of annotations, mounts, devices and limits.
    pub config: ContainerConfig,
    /// Arguments in place of the planned ones.
    pub args: Option<Vec<String>>,
    /// Variables to set, or to remove where there is no value.
    pub env: Vec<(String, Option<String>)>,
    /// Limits of the process, each in place of a planned one of the same resource.
    pub rlimits: Vec<ResourceLimit>,
    /// Most processes of a Linux container; 0 or less is no limit.
    pub pids: Option<i64>,
    /// How a Linux program is scheduled.
    pub scheduling: Scheduling,
    /// Network devices of the node that the pod of a Linux container gets.
    pub net_devices: Vec<NetDevice>,
}

impl Adjusted {
    /// Changes a plan that was made for the adjusted config. Errors: Invalid, with what is wrong.
    pub(crate) fn apply(&self, pod: &PodRecord, plan: &mut Plan) -> Result<(), Error> {
        if let Some(args) = &self.args {
            plan.args.clone_from(args);
        }
        for (name, value) in &self.env {
            set(&mut plan.env, name, value.as_deref());
        }
        fits(plan)?;
        match &mut plan.payload {
            Payload::Linux(linux) => self.apply_linux(pod, linux),
            Payload::Wasm(wasm) => {
                wasm.rlimits.clone_from(&self.rlimits);
                self.is_for_instances()
            }
        }
    }

    fn apply_linux(&self, pod: &PodRecord, linux: &mut LinuxPlan) -> Result<(), Error> {
        for limit in &self.rlimits {
            let limits = &mut linux.jail.rlimits;
            limits.retain(|planned| planned.resource != limit.resource);
            limits.push(limit.clone());
        }
        if self.pids.is_some() {
            linux.limits.pids = self.pids;
        }
        linux.jail.scheduling = self.scheduling.clone();
        linux.net_devices.extend(self.net_devices.iter().cloned());
        linux.can_move_devices(pod)
    }

    fn is_for_instances(&self) -> Result<(), Error> {
        if self.pids.is_none() && self.scheduling.is_usual() && self.net_devices.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            "a WebAssembly container has no number of processes, scheduling or network devices to set",
        ))
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: Option<&str>) {
    let known = env.iter().position(|(known, _)| known == name);
    match (known, value) {
        (Some(at), Some(value)) => value.clone_into(&mut env[at].1),
        (Some(at), None) => drop(env.remove(at)),
        (None, Some(value)) => env.push((name.to_owned(), value.to_owned())),
        (None, None) => {}
    }
}

/// Arguments and environment fit into what a process can be given.
fn fits(plan: &Plan) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(Kind::Invalid, why));
    if plan.args.first().is_none_or(String::is_empty) {
        return refuse("the adjusted arguments name no program".to_owned());
    }
    if plan.args.iter().any(|arg| arg.contains('\0')) {
        return refuse("an adjusted argument holds a NUL byte".to_owned());
    }
    let bad = |(name, value): &&(String, String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    if let Some((name, _)) = plan.env.iter().find(bad) {
        return refuse(format!(
            "adjusted variable {name:?}: a name is not empty and holds no `=` or NUL"
        ));
    }
    let args: usize = plan.args.iter().map(|arg| arg.len() + 1).sum();
    let env = plan.env.iter();
    let env: usize = env.map(|(name, value)| name.len() + value.len() + 2).sum();
    if args > MAX_BYTES || env > MAX_BYTES {
        return refuse(format!(
            "the adjusted arguments hold {args} bytes and the environment {env}, {MAX_BYTES} are allowed for each"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "plugins/tests.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
