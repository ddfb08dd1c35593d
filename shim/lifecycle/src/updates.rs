//! Changes of limits, by the kubelet and by plugins, and what plugins are told of pods when they come.
//!
//! Called by: `cri`, the shim's `nri`. Calls: drivers. Invariant: a plugin's change is not told to plugins.
//! Must not know: who the plugins are.

use coracle_spec::id::{ContainerId, PodId};

use super::driver::Origin;
use super::{Error, PodRecords, Pods, Request, Resources, send_request};

impl Pods {
    /// Changes its limits; values of `resources` that are 0 or empty stay. New limits are recorded and shown once they
    /// hold.
    /// Errors: WrongPhase when it has ended or uses more memory than the new limit; Invalid. The limits then stay.
    pub async fn update_container(
        &self,
        id: &ContainerId,
        resources: Resources,
    ) -> Result<(), Error> {
        self.update(id, resources, Origin::Kubelet).await
    }

    /// The same for a plugin. Errors: the same; Missing.
    pub async fn update_for_plugin(
        &self,
        id: &ContainerId,
        resources: Resources,
    ) -> Result<(), Error> {
        self.update(id, resources, Origin::Plugin).await
    }

    /// Has plugins take part in new limits of a pod as a whole. Errors: Missing; one refuses them.
    pub async fn update_pod(
        &self,
        id: &PodId,
        overhead: &Resources,
        requested: &Resources,
    ) -> Result<(), Error> {
        let plugins = &self.shared.plugins;
        if !plugins.any() {
            return Ok(());
        }
        let records = self.records(id).await?;
        plugins.update_pod(&records.pod, overhead, requested).await
    }

    async fn update(
        &self,
        id: &ContainerId,
        resources: Resources,
        origin: Origin,
    ) -> Result<(), Error> {
        send_request(&self.container_mailbox(id)?, |reply| {
            Request::Update(id.clone(), resources, origin, reply)
        })
        .await
    }

    /// What a plugin is told of a pod when it comes. Errors: Missing.
    pub async fn records(&self, id: &PodId) -> Result<PodRecords, Error> {
        send_request(&self.pod_mailbox(id)?, Request::Records).await
    }
}
