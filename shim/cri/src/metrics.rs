//! The RPCs about metrics: describe them, measure, render.
//!
//! Called by `service`. Calls: the collector, which other scrapers share. Invariant: one reply fits into a message of
//! the kubelet's client; what does not fit is left out by groups, alike for all containers, and then by pods, and said in
//! the log, once each.
//! Must not know: which metrics there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_proto::runtime::v1 as cri;
use coracle_telemetry::Snapshot;

use super::Shared;
use super::convert;
use super::events::{Replies, blocking_replies};
use super::status::Failure;

/// Bytes of one reply: a little less than the 16 MiB that the kubelet's client takes.
const MAX_REPLY_BYTES: usize = 15 << 20;

/// ListMetricDescriptors: the kubelet calls it once, when it starts.
pub(super) async fn descriptors(
    shared: Arc<Shared>,
    _: cri::ListMetricDescriptorsRequest,
) -> Result<cri::ListMetricDescriptorsResponse, Failure> {
    Ok(convert::metric_descriptors(shared.metrics.series()))
}

/// ListPodSandboxMetrics.
pub(super) async fn list(
    shared: Arc<Shared>,
    _: cri::ListPodSandboxMetricsRequest,
) -> Result<cri::ListPodSandboxMetricsResponse, Failure> {
    // Of groups, of pods.
    static HAS_WARNED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    let snapshot = measured(&shared).await?;
    let rendered = move || convert::metrics_reply(&snapshot, MAX_REPLY_BYTES);
    let rendered = coracle_lifecycle::blocking("rendering metrics", move || Ok(rendered()));
    let reply = rendered.await?;
    let is_whole = reply.groups_left_out.is_empty() && reply.pods_left_out == 0;
    let has_warned = &HAS_WARNED[usize::from(reply.pods_left_out > 0)];
    if !is_whole && !has_warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            left_out = ?reply.groups_left_out,
            pods_left_out = reply.pods_left_out,
            limit_bytes = MAX_REPLY_BYTES,
            "not all metrics of this many pods fit into one reply: the kubelet's gate CRIListStreaming, or a scrape of \
             /metrics/cadvisor of this daemon, gets all"
        );
    }
    Ok(reply.message)
}

/// StreamPodSandboxMetrics: all of it, in several messages.
pub(super) async fn stream(
    shared: Arc<Shared>,
    _: cri::StreamPodSandboxMetricsRequest,
) -> Result<Replies<cri::StreamPodSandboxMetricsResponse>, Failure> {
    let snapshot = measured(&shared).await?;
    let pods = 0..snapshot.pods.len();
    let rendered = pods.map(move |at| convert::pod_metrics(&snapshot.pods[at], None));
    Ok(blocking_replies("rendering metrics", rendered))
}

async fn measured(shared: &Shared) -> Result<Arc<Snapshot>, Failure> {
    Ok(shared.metrics.snapshot().await?)
}
