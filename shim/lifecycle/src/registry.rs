//! Routes names and ids of sandboxes and containers to the drivers that serve them.
//!
//! Called by: [`super::Pods`] to route a request, drivers to release names. One short lock, never held across an await.
//! Invariants: a pod's name belongs to the driver that serves it from the request until that driver is gone, so that a
//! retry finds the first try; an id routes to one driver. The cost of a call does not depend on the number of pods.
//! Must not know: what a driver does.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_spec::id::{ContainerId, PodId};

use super::config::PodName;

/// The result of claiming a name.
#[derive(Debug)]
pub enum Claim<M> {
    /// The name now belongs to the claimer, under the id that it offered.
    Taken,
    /// The name belongs to this pod, whose driver has this mailbox.
    Held(PodId, M),
}

/// A pod's driver, and the containers that it answers for.
#[derive(Debug)]
struct Driver<M> {
    mailbox: M,
    containers: HashSet<ContainerId>,
}

#[derive(Debug)]
struct Tables<M> {
    drivers: HashMap<PodId, Driver<M>>,
    names: HashMap<PodName, PodId>,
    containers: HashMap<ContainerId, PodId>,
}

impl<M> Tables<M> {
    fn route(&mut self, id: &PodId, mailbox: M) {
        match self.drivers.entry(id.clone()) {
            Entry::Occupied(mut driver) => driver.get_mut().mailbox = mailbox,
            Entry::Vacant(free) => {
                let containers = HashSet::new();
                free.insert(Driver {
                    mailbox,
                    containers,
                });
            }
        }
    }
}

/// Names, ids and the mailboxes (`M`) behind them.
#[derive(Debug)]
pub struct NameRegistry<M> {
    tables: Mutex<Tables<M>>,
}

impl<M: Clone> NameRegistry<M> {
    /// An empty registry.
    pub fn new() -> NameRegistry<M> {
        let tables = Tables {
            drivers: HashMap::new(),
            names: HashMap::new(),
            containers: HashMap::new(),
        };
        NameRegistry {
            tables: Mutex::new(tables),
        }
    }

    /// Claims `name` for the pod `id`, served by `mailbox`.
    pub fn claim(&self, name: &PodName, id: &PodId, mailbox: M) -> Claim<M> {
        let mut tables = self.lock();
        if let Some(holder) = tables.names.get(name)
            && let Some(held) = tables.drivers.get(holder)
        {
            return Claim::Held(holder.clone(), held.mailbox.clone());
        }
        tables.names.insert(name.clone(), id.clone());
        tables.route(id, mailbox);
        Claim::Taken
    }

    /// Routes the pod's id to `mailbox` without a name, when two records have the same name, which only a bug can
    /// cause.
    pub fn adopt(&self, id: &PodId, mailbox: M) {
        self.lock().route(id, mailbox);
    }

    /// Releases the pod's name and id, and the ids of its containers.
    pub fn release(&self, name: &PodName, id: &PodId) {
        let mut tables = self.lock();
        if tables.names.get(name) == Some(id) {
            tables.names.remove(name);
        }
        for container in tables
            .drivers
            .remove(id)
            .into_iter()
            .flat_map(|driver| driver.containers)
        {
            tables.containers.remove(&container);
        }
    }

    /// The names that are claimed, also of pods that are still being created, with their ids.
    pub fn names(&self) -> Vec<(PodName, PodId)> {
        let tables = self.lock();
        let names = tables.names.iter();
        names.map(|(name, id)| (name.clone(), id.clone())).collect()
    }

    /// The mailbox of a pod's driver.
    pub fn pod(&self, id: &PodId) -> Option<M> {
        let tables = self.lock();
        tables.drivers.get(id).map(|driver| driver.mailbox.clone())
    }

    /// The mailbox of the driver that has the container.
    pub fn container(&self, id: &ContainerId) -> Option<M> {
        let tables = self.lock();
        let pod = tables.containers.get(id)?;
        tables.drivers.get(pod).map(|driver| driver.mailbox.clone())
    }

    /// Routes the container's id to its pod's driver.
    pub fn add_container(&self, id: &ContainerId, pod: &PodId) {
        let mut tables = self.lock();
        if let Some(driver) = tables.drivers.get_mut(pod) {
            driver.containers.insert(id.clone());
            tables.containers.insert(id.clone(), pod.clone());
        }
    }

    /// Removes the route of the container's id.
    pub fn drop_container(&self, id: &ContainerId) {
        let mut tables = self.lock();
        if let Some(pod) = tables.containers.remove(id)
            && let Some(driver) = tables.drivers.get_mut(&pod)
        {
            driver.containers.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables<M>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn name(attempt: u32) -> PodName {
        PodName {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            attempt,
        }
    }

    #[test]
    fn a_name_belongs_to_its_first_claimer_until_released() {
        let registry = NameRegistry::new();
        let (first, second) = (PodId::random().unwrap(), PodId::random().unwrap());
        assert!(matches!(
            registry.claim(&name(0), &first, 'a'),
            Claim::Taken
        ));
        assert!(
            matches!(registry.claim(&name(0), &second, 'b'), Claim::Held(id, 'a') if id == first)
        );
        assert!(matches!(
            registry.claim(&name(1), &second, 'b'),
            Claim::Taken
        ));
        registry.release(&name(0), &first);
        assert_eq!(registry.pod(&first), None);
        assert!(matches!(
            registry.claim(&name(0), &PodId::random().unwrap(), 'c'),
            Claim::Taken
        ));
    }

    #[test]
    fn a_late_release_does_not_free_the_name_of_its_next_holder() {
        let registry = NameRegistry::new();
        let (first, second) = (PodId::random().unwrap(), PodId::random().unwrap());
        registry.claim(&name(0), &first, 'a');
        registry.release(&name(0), &first);
        registry.claim(&name(0), &second, 'b');
        registry.release(&name(0), &first);
        assert!(
            matches!(registry.claim(&name(0), &first, 'c'), Claim::Held(id, 'b') if id == second)
        );
    }

    #[test]
    fn a_pods_release_takes_its_containers_along() {
        let registry = NameRegistry::new();
        let pod = PodId::random().unwrap();
        let (one, two) = (
            ContainerId::random().unwrap(),
            ContainerId::random().unwrap(),
        );
        registry.claim(&name(0), &pod, 'a');
        registry.add_container(&one, &pod);
        registry.add_container(&two, &pod);
        registry.drop_container(&two);
        assert_eq!(
            (registry.container(&one), registry.container(&two)),
            (Some('a'), None)
        );
        registry.release(&name(0), &pod);
        assert_eq!(registry.container(&one), None);
    }
}
