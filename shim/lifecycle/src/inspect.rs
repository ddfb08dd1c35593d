//! What operators learn of pods beyond their snapshots: what happened, what each driver does, and whether the
//! network is ready.
//!
//! Called by: the admin service; `cri` for its status. Calls: the history, drivers. Invariant: nothing changes.
//! Must not know: how it is shown.

use std::sync::Arc;

use coracle_spec::id::{ContainerId, PodId};
use tokio::sync::broadcast;

use super::history::HistoryEntry;
use super::{ContainerKind, Error, Inspection, Pods, Request, send_request};

impl Pods {
    /// What happened lately, oldest first, and what happens from now on; a slow reader loses the oldest entries and gets an
    /// error that says how many.
    #[must_use]
    pub fn follow_history(
        &self,
    ) -> (
        Vec<Arc<HistoryEntry>>,
        broadcast::Receiver<Arc<HistoryEntry>>,
    ) {
        self.shared.history.follow()
    }

    /// Which kind of container it is; `None` for one whose record cannot be used, and for one that is gone.
    #[must_use]
    pub fn container_kind(&self, id: &ContainerId) -> Option<ContainerKind> {
        self.shared.cache.kind(id)
    }

    /// Why new sandboxes get no network, for users to read; `None` if they do. Answers within 100 ms.
    pub async fn network_problem(&self) -> Option<String> {
        self.shared.host().network_problem().await
    }

    /// Namespace, name and id of every pod, also of those that are still being created.
    #[must_use]
    pub fn names(&self) -> Vec<(String, String, PodId)> {
        let names = self.shared.registry.names().into_iter();
        names
            .map(|(name, id)| (name.namespace, name.name, id))
            .collect()
    }

    /// Goes the way of a request: takes the locks that all requests take, and waits for the answer of one driver; of another one
    /// for another `turn`. Returns the pod's namespace and name, if there is a pod. Does not return while something on that
    /// way hangs.
    pub async fn round_trip(&self, turn: usize) -> Option<(String, String)> {
        let names = self.names();
        let shown = self.shared.cache.pods().len();
        tracing::trace!(
            pods = names.len(),
            shown,
            "checking that requests are answered"
        );
        let (namespace, name, id) = names.get(turn % names.len().max(1))?;
        // A pod that has gone meanwhile is an answer, too.
        let _ = self.inspect(id).await;
        Some((namespace.clone(), name.clone()))
    }

    /// What the driver of a pod does. Errors: Missing. A driver that hangs does not answer: limit the wait.
    pub async fn inspect(&self, id: &PodId) -> Result<Inspection, Error> {
        send_request(&self.pod_mailbox(id)?, Request::Inspect).await
    }
}
