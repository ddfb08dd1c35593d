//! The RPCs about containers: convert the request, send it to the lifecycle, render the reply.
//!
//! Called by `service`. Invariants: stopping or removing an absent container succeeds; lists and status come from
//! memory.
//! Must not know: gRPC codes, phases.

use std::sync::Arc;

use coracle_lifecycle::{ContainerView, Error, Kind};
use coracle_proto::runtime::v1 as cri;

use super::convert::{self, ContainerFilter, NamesObject as _};
use super::events::{Replies, replies};
use super::status::{Failure, or_absent};
use super::{Shared, span};

/// CreateContainer: returns when everything except the process exists.
pub(super) async fn create(
    shared: Arc<Shared>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Failure> {
    let named = request.object()?.to_owned();
    span::sandbox(&shared, &named);
    let pod = shared.pods.find_pod(&named);
    let view = pod.as_ref().ok().and_then(|id| shared.pods.pod(id));
    let (grants, handler) = match &view {
        Some(view) => (view.config.grants.clone(), view.config.handler_name()),
        None => Default::default(),
    };
    span::new_container(convert::new_container_name(&request));
    let config = convert::container_config(request, &grants, handler)?;
    let pod = pod?;
    let id = shared.pods.create_container(&pod, config).await?;
    span::made("container.id", id.as_str());
    Ok(convert::create_reply(&id))
}

/// StartContainer: returns when it runs.
pub(super) async fn start(
    shared: Arc<Shared>,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Failure> {
    let named = request.object()?;
    span::container(&shared, named);
    let id = shared.pods.find_container(named)?;
    shared.pods.start_container(&id).await?;
    Ok(cri::StartContainerResponse {})
}

/// StopContainer: returns when it has ended.
pub(super) async fn stop(
    shared: Arc<Shared>,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Failure> {
    let named = request.object()?;
    span::container(&shared, named);
    let grace = convert::grace(&request)?;
    if let Some(id) = or_absent(shared.pods.find_container(named))? {
        or_absent(shared.pods.stop_container(&id, grace).await)?;
    }
    Ok(cri::StopContainerResponse {})
}

/// RemoveContainer: kills it if it runs, then removes it.
pub(super) async fn remove(
    shared: Arc<Shared>,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Failure> {
    let named = request.object()?;
    span::container(&shared, named);
    if let Some(id) = or_absent(shared.pods.find_container(named))? {
        or_absent(shared.pods.remove_container(&id).await)?;
    }
    Ok(cri::RemoveContainerResponse {})
}

/// ReopenContainerLog: called after the kubelet has renamed the log.
pub(super) async fn reopen_log(
    shared: Arc<Shared>,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Failure> {
    let named = request.object()?;
    span::container(&shared, named);
    let id = shared.pods.find_container(named)?;
    shared.pods.reopen_log(&id).await?;
    Ok(cri::ReopenContainerLogResponse {})
}

/// ContainerStatus.
pub(super) async fn status(
    shared: Arc<Shared>,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Failure> {
    let view = one(&shared, request.object()?)?;
    let mut reply = convert::container_status_reply(&view, &request);
    // The kubelet sends an image id; people want to read a name.
    let image = shared.images.resolve(&view.image_id);
    let name = image.as_ref().and_then(|image| {
        let mut names = image.repo_tags.iter().chain(&image.repo_digests);
        names.next()
    });
    if let (Some(name), Some(status)) = (name, &mut reply.status) {
        status.image.get_or_insert_default().image.clone_from(name);
    }
    Ok(reply)
}

/// ListContainers.
pub(super) async fn list(
    shared: Arc<Shared>,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Failure> {
    let chosen = chosen(&shared, request.try_into()?);
    Ok(convert::list(
        chosen.iter().map(|view| convert::container(view)),
    ))
}

/// StreamContainers: the same list in several messages.
pub(super) async fn stream(
    shared: Arc<Shared>,
    request: cri::StreamContainersRequest,
) -> Result<Replies<cri::StreamContainersResponse>, Failure> {
    let chosen = chosen(&shared, request.try_into()?);
    Ok(replies(
        chosen.into_iter().map(|view| convert::container(&view)),
    ))
}

/// The container with this id or prefix of an id. Errors: Missing; Invalid when several match.
pub(super) fn one(shared: &Shared, named: &str) -> Result<Arc<ContainerView>, Failure> {
    span::container(shared, named);
    let id = shared.pods.find_container(named)?;
    // It may have been removed since it was looked up.
    let gone = || {
        Error::new(
            Kind::Missing,
            format!("container {id} does not exist any more"),
        )
    };
    Ok(shared.pods.container(&id).ok_or_else(gone)?)
}

/// The containers that match a filter.
pub(super) fn chosen(shared: &Shared, filter: ContainerFilter) -> Vec<Arc<ContainerView>> {
    filter.select(shared.pods.containers())
}
