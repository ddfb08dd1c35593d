//! What operators learn of pods beyond their snapshots: what happened, what each driver does, and whether the
//! network is ready.
//!
//! Called by: the admin service; `cri` for its status. Calls: the history, drivers. Invariant: nothing changes.
//! Must not know: how it is shown.

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::{ContainerId, PodId};
use futures_util::future::join_all;
use tokio::sync::broadcast;

use super::history::HistoryEntry;
use super::{ContainerKind, Error, Inspection, Pods, Request, send_request};

/// How many drivers one round trip asks.
const ASKED: usize = 8;

/// Which drivers were asked, and have not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// How many were asked.
    pub asked: usize,
    /// The pods of those that have not answered: `namespace/name`.
    pub silent: Vec<String>,
}

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

    /// What connects new sandboxes to the network, for users to read.
    #[must_use]
    pub fn network_mode(&self) -> String {
        self.shared.host.network_mode()
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

    /// Goes the way of a request: takes the locks that all requests take, and asks some drivers, others at each `turn`.
    /// Does not return while one of those locks is held; waits `limit` for the drivers.
    pub async fn round_trip(&self, turn: usize, limit: Duration) -> RoundTrip {
        let names = self.names();
        let shown = self.shared.cache.pods().len();
        tracing::trace!(
            pods = names.len(),
            shown,
            "checking that requests are answered"
        );
        let asked = names.len().min(ASKED);
        let some = names.iter().cycle().skip(turn * asked % names.len().max(1));
        let answers = some.take(asked).map(|(namespace, name, id)| async move {
            // A pod that has gone meanwhile is an answer, too.
            let answer = tokio::time::timeout(limit, self.inspect(id)).await;
            answer.is_err().then(|| format!("{namespace}/{name}"))
        });
        let silent = join_all(answers).await.into_iter().flatten().collect();
        RoundTrip { asked, silent }
    }

    /// What the driver of a pod does. Errors: Missing. A driver that hangs does not answer: limit the wait.
    pub async fn inspect(&self, id: &PodId) -> Result<Inspection, Error> {
        send_request(&self.pod_mailbox(id)?, Request::Inspect).await
    }
}
