//! The RPCs that change what runs: UpdateContainerResources and UpdatePodSandboxResources.
//!
//! Called by `service`. Not here: how limits are changed.

use std::sync::Arc;

use coracle_proto::runtime::v1 as cri;
use tracing::info;

use super::convert::{self, NamesObject as _};
use super::status::Failure;
use super::{Shared, concerns};

/// UpdateContainerResources: new limits in place; what the request leaves out stays.
pub(super) async fn container(
    shared: Arc<Shared>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Failure> {
    let named = request.object()?;
    concerns("container", named);
    let resources = convert::new_resources(&request)?;
    let id = shared.pods.find_container(named)?;
    shared.pods.update_container(&id, resources).await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

/// UpdatePodSandboxResources: kubelet says what the sandbox as a whole will have. The pod's cgroup is kubelet's own
/// and nothing of ours is sized by it, so it is taken note of in the log.
pub(super) async fn pod(
    shared: Arc<Shared>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Failure> {
    let named = request.object()?;
    concerns("pod", named);
    let id = shared.pods.find_pod(named)?;
    info!(pod = %id, "kubelet changes the resources of the sandbox");
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
