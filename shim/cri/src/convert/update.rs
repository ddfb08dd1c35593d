//! UpdateContainerResources: converts the request into [`Resources`].
//!
//! Called by `update`. Must not know: the current limits of the container.

use coracle_lifecycle::Resources;
use coracle_proto::runtime::v1 as cri;

use super::{BadRequest, resources};

/// The requested limits; 0 and empty leave a limit as it is. Errors: a value that is invalid for every container.
pub(crate) fn new_resources(
    request: &cri::UpdateContainerResourcesRequest,
) -> Result<Resources, BadRequest> {
    if request.windows.is_some() {
        return Err(BadRequest::invalid(
            "windows",
            "is set, and this is a Linux node",
        ));
    }
    resources::resources("linux", request.linux.as_ref())
}

/// The overhead and the limits of an UpdatePodSandboxResources. Errors: a value that cannot be.
pub(crate) fn new_pod_resources(
    request: &cri::UpdatePodSandboxResourcesRequest,
) -> Result<(Resources, Resources), BadRequest> {
    Ok((
        resources::resources("overhead", request.overhead.as_ref())?,
        resources::resources("resources", request.resources.as_ref())?,
    ))
}
