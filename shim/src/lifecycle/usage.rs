//! What containers and pods use: which of them are measured, and the errand to the host that measures them.
//!
//! Called by: `cri/stats`. Calls: the [`super::Board`] for who exists, the host on the blocking pool.
//! Invariants: no driver and no keeper is asked; a request that goes away leaves nothing behind but memory of rates.
//! Not here: files, CRI messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ContainerView, Error, PodView, Pods};
use crate::host::{ContainerUsage, Measured, PodUsage, blocking};

impl Pods {
    /// What each of `containers` uses, in their order; one that has ended has no numbers.
    pub async fn container_usage(
        &self,
        containers: Vec<Arc<ContainerView>>,
    ) -> Result<Vec<ContainerUsage>, Error> {
        let host = Arc::clone(&self.shared.host);
        let (all, pods) = (self.containers(), self.pods());
        blocking("measuring containers", move || {
            host.forget_measures(&all, &pods);
            Ok(host.measure(containers))
        })
        .await
    }

    /// What each of `pods` uses, with its containers, in their order.
    pub async fn pod_usage(&self, pods: Vec<Arc<PodView>>) -> Result<Vec<PodUsage>, Error> {
        let host = Arc::clone(&self.shared.host);
        let (all, everybody) = (self.containers(), self.pods());
        blocking("measuring sandboxes", move || {
            host.forget_measures(&all, &everybody);
            Ok(host.measure_pods(measured(pods, &all, &everybody)))
        })
        .await
    }
}

/// Gives each of `pods` its containers, and finds out who shares a parent cgroup with another pod.
fn measured(
    pods: Vec<Arc<PodView>>,
    containers: &[Arc<ContainerView>],
    everybody: &[Arc<PodView>],
) -> Vec<Measured> {
    let mut parents: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for pod in everybody {
        let (uid, parent) = (pod.wish.name.uid.as_str(), pod.cgroup_parent.as_str());
        let owner = parents.entry(parent).or_insert((uid, true));
        // Attempts of one pod follow each other in its own parent.
        owner.1 &= owner.0 == uid;
    }
    let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for container in containers {
        let of = members.entry(&container.pod).or_default();
        of.push(Arc::clone(container));
    }
    let one = |view: Arc<PodView>| {
        // The configured parent is everybody's, even while only one pod is there.
        let named = !view.wish.cgroup_parent.is_empty();
        let alone = parents
            .get(view.cgroup_parent.as_str())
            .is_some_and(|(_, alone)| *alone);
        Measured {
            containers: members.remove(&view.id).unwrap_or_default(),
            owns_parent: named && alone,
            view,
        }
    };
    pods.into_iter().map(one).collect()
}
