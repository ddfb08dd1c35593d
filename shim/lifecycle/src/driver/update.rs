//! UpdateContainerResources: changes the limits of an existing container, one request after the other.
//!
//! Called by: the driver. Calls: the host's `change_limits` in a task of its own.
//! Invariants: a change is applied, then saved, then published and answered, so clients see only limits that hold;
//! after a crash between the first two the kubelet, which got no answer, asks again. Values that a request leaves out
//! stay.
//! Must not know: cgroup files, whether a value is sane by itself.

use std::sync::{Arc, LazyLock};

use coracle_cgroup::Limits;
use coracle_spec::id::ContainerId;
use coracle_streaming::Owner;

use super::container::{missing, save_container};
use super::{Completion, Driver, Message, Origin, Reply, Shared};
use crate::blocking::blocking;
use crate::config::{ContainerConfig, Resources};
use crate::error::{Error, Kind};
use crate::limits::{difference, replanned};
use crate::record::{ContainerRecord, Plan};
use crate::state::ContainerPhase;
use crate::turns::Turns;

/// Most threads that change limits at a time. The kernel may take long to reclaim memory whose disk is dead, and no signal
/// helps.
const AT_A_TIME: usize = 16;

/// Turns of threads.
static TURNS: LazyLock<Turns> = LazyLock::new(|| Turns::new(AT_A_TIME));

/// A container as it is after a change.
pub struct Changed {
    config: Arc<ContainerConfig>,
    plan: Arc<Plan>,
    /// The same for its cgroup.
    limits: Limits,
}

impl Driver {
    pub(super) fn handle_update(
        &mut self,
        id: &ContainerId,
        requested: Resources,
        origin: Origin,
        reply: Reply<()>,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Err(missing(id)));
            return;
        };
        let update = &mut container.waiting.update;
        update.push_back((requested, origin, reply));
        if update.len() == 1 {
            self.change(id);
        }
    }

    /// Starts waiting changes, until one is under way or none is left.
    fn change(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        while let Some((requested, origin, _)) = container.waiting.update.front() {
            let before = container.record().ok_or_else(|| missing(id));
            let changed = before.and_then(|before| Ok((changed(&before, requested)?, before)));
            match changed {
                Ok((changed, before)) => {
                    let asked = (*origin == Origin::Kubelet && self.shared.plugins.any())
                        .then(|| (requested.clone(), before));
                    return self.begin_change(id, changed, asked);
                }
                Err(error) => {
                    if let Some((_, _, reply)) = container.waiting.update.pop_front() {
                        let _ = reply.send(Err(error));
                    }
                }
            }
        }
    }

    /// Applies a change; with `asked` plugins may change the request to it before.
    fn begin_change(
        &mut self,
        id: &ContainerId,
        mut change: Changed,
        asked: Option<(Resources, ContainerRecord)>,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.busy += 1;
        let (shared, completed) = (Arc::clone(&self.shared), id.clone());
        let owner = Owner {
            tenant: self.record.config.name.namespace.clone(),
            target: self.record.id.to_string(),
        };
        let pod = asked.is_some().then(|| self.record.clone());
        let notified = self.notified();
        self.effect(
            async move {
                let Some(((requested, before), pod)) = asked.zip(pod) else {
                    return applied(&shared, &owner, change).await;
                };
                if let Some(notified) = notified {
                    notified.await;
                }
                let plugins = &shared.plugins;
                let requested = plugins.update_container(&pod, &before, requested).await?;
                change = changed(&before, &requested)?;
                applied(&shared, &owner, change).await
            },
            |result| Message::Container(completed, Completion::Changed(result.map(Box::new))),
        );
    }

    /// The change under way was applied or refused.
    pub(super) async fn changed(&mut self, id: &ContainerId, result: Result<Box<Changed>, Error>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let outcome = match result {
            Ok(changed) => {
                (container.config, container.plan) = (changed.config, Some(changed.plan));
                save_container(container).await
            }
            Err(error) => Err(error),
        };
        if let Some((_, origin, reply)) = container.waiting.update.pop_front() {
            if outcome.is_ok() && origin == Origin::Kubelet {
                self.tell_of_limits(id);
            }
            self.answer_when_notified(vec![reply], outcome);
        }
        self.show(id);
        self.change(id);
    }
}

/// Writes new limits to the container's cgroup, in the turn of its pod.
async fn applied(shared: &Arc<Shared>, pod: &Owner, changed: Changed) -> Result<Changed, Error> {
    let shared = Arc::clone(shared);
    let turn = TURNS.take(pod).await;
    blocking("changing limits", move || {
        let _turn = turn;
        shared.host.change_limits(&changed.plan, &changed.limits)?;
        Ok(changed)
    })
    .await
}

/// What `requested` makes of the container `before`. Errors: WrongPhase, Invalid.
fn changed(before: &ContainerRecord, requested: &Resources) -> Result<Changed, Error> {
    let (plan, resources) = (&before.plan, &before.config.resources);
    let config = decide(&before.id, &before.phase, &before.config, requested)?;
    let limits = difference(plan, resources, &config.resources);
    Ok(Changed {
        plan: Arc::new(replanned(plan, &config.resources, &limits)),
        config: Arc::new(config),
        limits,
    })
}

/// The container after `requested`. Errors: WrongPhase, Invalid.
fn decide(
    id: &ContainerId,
    phase: &ContainerPhase,
    config: &ContainerConfig,
    requested: &Resources,
) -> Result<ContainerConfig, Error> {
    if !matches!(phase, ContainerPhase::Created) && !phase.is_live() {
        let text = format!(
            "cannot change the limits of container {id}: it is {}, not created or running",
            phase.name()
        );
        return Err(Error::new(Kind::WrongPhase, text));
    }
    let mut resources = merged(&config.resources, requested);
    if *phase != ContainerPhase::Created {
        // A process gets it at its start, and may have set another for its children.
        resources.oom_score_adj = config.resources.oom_score_adj;
    }
    let (memory, with_swap) = (
        resources.memory_limit_bytes,
        resources.memory_swap_limit_bytes,
    );
    if with_swap > 0 && with_swap < memory {
        let text = format!(
            "container {id} would have {memory} bytes of memory and {with_swap} of memory and swap together, which is less"
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    let mut config = config.clone();
    config.resources = resources;
    Ok(config)
}

/// `before` with everything that `requested` sets; 0 and empty mean "not set", as everywhere in CRI.
fn merged(before: &Resources, requested: &Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old } else { new }.clone();
    let mut unified = before.unified.clone();
    unified.extend(requested.unified.clone());
    let mut hugepages = before.hugepages.clone();
    for (size, bytes) in &requested.hugepages {
        match hugepages.iter_mut().find(|(known, _)| known == size) {
            Some(known) => known.1 = *bytes,
            None => hugepages.push((size.clone(), *bytes)),
        }
    }
    Resources {
        cpu_period: number(before.cpu_period, requested.cpu_period),
        cpu_quota: number(before.cpu_quota, requested.cpu_quota),
        cpu_shares: number(before.cpu_shares, requested.cpu_shares),
        memory_limit_bytes: number(before.memory_limit_bytes, requested.memory_limit_bytes),
        oom_score_adj: number(before.oom_score_adj, requested.oom_score_adj),
        cpuset_cpus: text(&before.cpuset_cpus, &requested.cpuset_cpus),
        cpuset_mems: text(&before.cpuset_mems, &requested.cpuset_mems),
        memory_swap_limit_bytes: number(
            before.memory_swap_limit_bytes,
            requested.memory_swap_limit_bytes,
        ),
        unified,
        hugepages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_a_request_leaves_out_stay() {
        let before = Resources {
            cpu_shares: 100,
            cpu_quota: 50_000,
            memory_limit_bytes: 1 << 20,
            cpuset_cpus: "0".to_owned(),
            hugepages: vec![("2MB".to_owned(), 1)],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(merged(&before, &Resources::default()), before);
        let requested = Resources {
            cpu_quota: -1,
            memory_limit_bytes: 2 << 20,
            hugepages: vec![("2MB".to_owned(), 2), ("1GB".to_owned(), 3)],
            unified: [("memory.low".to_owned(), "2".to_owned())].into(),
            ..Resources::default()
        };
        let after = merged(&before, &requested);
        assert_eq!((after.cpu_shares, after.cpu_quota), (100, -1));
        assert_eq!(after.memory_limit_bytes, 2 << 20);
        assert_eq!(after.cpuset_cpus, "0");
        assert_eq!(
            after.hugepages,
            [("2MB".to_owned(), 2), ("1GB".to_owned(), 3)]
        );
        assert_eq!(after.unified.len(), 2);
    }
}
