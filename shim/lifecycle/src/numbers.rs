//! What is counted outside of this crate, for metrics.
//!
//! Called by: telemetry, the image service and the admin service. Calls: the host, the snapshots in memory for which pods there are.
//! Invariant: no driver and no keeper is involved. Must not know: names of series.

use std::sync::Arc;

use coracle_control::log_counts::LogTotals;
use coracle_spec::egress::Egress;

use super::{HostCounts, PodView, Pods};

impl Pods {
    /// What the host counted. O(1).
    pub fn counts(&self) -> HostCounts {
        self.shared.host().counts()
    }

    /// What keepers have counted of the logs that they write, since the node's start; `None` if they cannot.
    pub fn log_totals(&self) -> Option<LogTotals> {
        let page = self.counts().log_counts?;
        let pods = self.pods();
        Some(page.totals(pods.iter().map(|pod| (pod.id.as_str(), pod.ready))))
    }

    /// Packets that the egress lists of pods have refused since the daemon's start. Blocks for 100 ms at most.
    pub fn egress_refusals(&self) -> u64 {
        let listed = |pod: &Arc<PodView>| pod.ready && pod.config.reach() != Egress::Open;
        let pods = self.pods().into_iter().filter(listed);
        let pods = pods.map(|pod| pod.id.clone()).collect();
        self.shared.host().egress_refusals(pods)
    }
}
