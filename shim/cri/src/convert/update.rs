//! UpdateContainerResources: the request into [`Resources`].
//!
//! Called by `update`. Not here: what a container has already.

use coracle_lifecycle::Resources;
use coracle_proto::runtime::v1 as cri;

use super::{BadRequest, resources};

/// What is asked for; 0 and empty leave a limit as it is. Errors: a value that no container could have.
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
