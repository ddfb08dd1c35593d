//! The RPCs about sandboxes: convert the request, send it to the lifecycle, render the reply.
//!
//! Called by `service`. Invariants: stopping or removing an absent sandbox succeeds; lists and status come from memory.
//! Must not know: gRPC codes, phases.

use std::sync::Arc;

use coracle_lifecycle::{Error, Kind, PodView};
use coracle_proto::runtime::v1 as cri;

use super::convert::{self, NamesObject as _, PodFilter};
use super::events::{Replies, replies};
use super::status::{Failure, or_absent};
use super::{Shared, span};

/// RunPodSandbox: returns when the sandbox is ready.
pub(super) async fn run(
    shared: Arc<Shared>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Failure> {
    let config = convert::sandbox_config(request, &shared.policies.get())?;
    span::pod(&config.name);
    span::handler(config.shown_handler());
    let id = shared.pods.run_pod(config).await?;
    span::made("coracle.sandbox.id", id.as_str());
    Ok(convert::run_pod_reply(&id))
}

/// StopPodSandbox: ends its containers and tears its network down.
pub(super) async fn stop(
    shared: Arc<Shared>,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    if let Some(id) = or_absent(shared.pods.find_pod(named))? {
        or_absent(shared.pods.stop_pod(&id).await)?;
    }
    Ok(cri::StopPodSandboxResponse {})
}

/// RemovePodSandbox: stops it if need be, then removes it and its containers.
pub(super) async fn remove(
    shared: Arc<Shared>,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    if let Some(id) = or_absent(shared.pods.find_pod(named))? {
        or_absent(shared.pods.remove_pod(&id).await)?;
    }
    Ok(cri::RemovePodSandboxResponse {})
}

/// PodSandboxStatus.
pub(super) async fn status(
    shared: Arc<Shared>,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    let id = shared.pods.find_pod(named)?;
    // It may have been removed since it was looked up.
    let gone = || {
        Error::new(
            Kind::Missing,
            format!("sandbox {id} does not exist any more"),
        )
    };
    let view = shared.pods.pod(&id).ok_or_else(gone)?;
    let containers = shared.pods.containers_of(&id);
    Ok(convert::pod_status_reply(
        &view,
        containers.iter().map(Arc::as_ref),
        &request,
    ))
}

/// ListPodSandbox.
pub(super) async fn list(
    shared: Arc<Shared>,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Failure> {
    let chosen = chosen(&shared, request.try_into()?);
    Ok(convert::list(chosen.iter().map(|view| convert::pod(view))))
}

/// StreamPodSandboxes: the same list in several messages.
pub(super) async fn stream(
    shared: Arc<Shared>,
    request: cri::StreamPodSandboxesRequest,
) -> Result<Replies<cri::StreamPodSandboxesResponse>, Failure> {
    let chosen = chosen(&shared, request.try_into()?);
    Ok(replies(chosen.into_iter().map(|view| convert::pod(&view))))
}

fn chosen(shared: &Shared, filter: PodFilter) -> Vec<Arc<PodView>> {
    filter.select(shared.pods.pods())
}
