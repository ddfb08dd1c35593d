//! The RPCs that change limits: UpdateContainerResources and UpdatePodSandboxResources.
//!
//! Called by `service`. Must not know: how limits are changed.

use std::sync::Arc;

use coracle_proto::runtime::v1 as cri;
use tracing::info;

use super::convert::{self, NamesObject as _};
use super::status::Failure;
use super::{Shared, span};

/// UpdateContainerResources: changes limits in place; values that the request leaves out stay.
pub(super) async fn container(
    shared: Arc<Shared>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Failure> {
    let named = request.object()?;
    span::container(&shared, named);
    let resources = convert::new_resources(&request)?;
    let id = shared.pods.find_container(named)?;
    shared.pods.update_container(&id, resources).await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

/// UpdatePodSandboxResources: the kubelet announces the resources of the whole sandbox. The pod's cgroup belongs to the
/// kubelet and nothing of ours is sized by it, so the request is for plugins alone, and logged.
pub(super) async fn pod(
    shared: Arc<Shared>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    let id = shared.pods.find_pod(named)?;
    let (overhead, resources) = convert::new_pod_resources(&request)?;
    shared.pods.update_pod(&id, &overhead, &resources).await?;
    info!("the kubelet changes the resources of the sandbox");
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
