//! The RPCs about the runtime itself: Version, Status, RuntimeConfig, UpdateRuntimeConfig.
//!
//! Called by `service`. Invariant: they answer at once, from facts that `main` collected and from the state of the
//! network; the kubelet calls them before anything else and then every five seconds.
//! Must not know: pods, images.

use std::sync::Arc;

use coracle_proto::runtime::v1 as cri;
use tracing::info;

use super::status::Failure;
use super::{Shared, calls, convert};

/// Version: name and version of the runtime.
pub(super) async fn version(
    _: Arc<Shared>,
    _: cri::VersionRequest,
) -> Result<cri::VersionResponse, Failure> {
    Ok(convert::version_reply())
}

/// Status: whether pods can be run.
pub(super) async fn status(
    shared: Arc<Shared>,
    request: cri::StatusRequest,
) -> Result<cri::StatusResponse, Failure> {
    let problem = shared.pods.network_problem().await;
    calls::network(problem.is_none());
    Ok(convert::status_reply(
        &shared.node,
        &shared.policies.get(),
        problem.as_deref(),
        &request,
    ))
}

/// RuntimeConfig: the cgroup driver.
pub(super) async fn config(
    shared: Arc<Shared>,
    _: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Failure> {
    Ok(convert::runtime_config_reply(shared.node.cgroup_driver))
}

/// UpdateRuntimeConfig: accepted and ignored. The built-in network has a subnet of its own, and plugins have theirs in
/// their configuration.
pub(super) async fn update_config(
    _: Arc<Shared>,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Failure> {
    let pod_cidr = convert::runtime_config(&request)?;
    info!(
        pod_cidr,
        "kubelet's pod CIDR is not used; the configured subnet is"
    );
    Ok(cri::UpdateRuntimeConfigResponse {})
}
