//! The RPCs about the usage of containers and sandboxes: select, measure, render.
//!
//! Called by `service`. Invariants: an ended container is listed without numbers, an ended sandbox is left out, as in
//! containerd; neither fails a list.
//! Must not know: how usage is measured.

use std::sync::Arc;

use coracle_lifecycle::{ContainerUsage, Error, Kind, PodUsage};
use coracle_proto::runtime::v1 as cri;

use super::containers::{chosen, one};
use super::convert::{self, ContainerFilter, NamesObject as _, PodFilter};
use super::events::{Replies, replies};
use super::status::Failure;
use super::{Shared, span};

/// ContainerStats.
pub(super) async fn container(
    shared: Arc<Shared>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Failure> {
    let view = one(&shared, request.object()?)?;
    let measured = shared.pods.container_usage(vec![view]).await?;
    let stats = measured
        .first()
        .map(|usage| convert::container_stats(usage, &shared.node.layers_dir));
    Ok(cri::ContainerStatsResponse { stats })
}

/// ListContainerStats.
pub(super) async fn list_containers(
    shared: Arc<Shared>,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Failure> {
    let measured = containers(&shared, request.try_into()?).await?;
    let root = &shared.node.layers_dir;
    Ok(convert::list(
        measured
            .iter()
            .map(|usage| convert::container_stats(usage, root)),
    ))
}

/// StreamContainerStats: the same list in several messages.
pub(super) async fn stream_containers(
    shared: Arc<Shared>,
    request: cri::StreamContainerStatsRequest,
) -> Result<Replies<cri::StreamContainerStatsResponse>, Failure> {
    let measured = containers(&shared, request.try_into()?).await?;
    let render = move |usage| convert::container_stats(&usage, &shared.node.layers_dir);
    Ok(replies(measured.into_iter().map(render)))
}

/// PodSandboxStats. Errors: the sandbox has ended.
pub(super) async fn pod(
    shared: Arc<Shared>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Failure> {
    let named = request.object()?;
    span::sandbox(&shared, named);
    let id = shared.pods.find_pod(named)?;
    let view = shared.pods.pod(&id).filter(|view| view.ready);
    let ended = || {
        Error::new(
            Kind::WrongPhase,
            format!("sandbox {id} is not ready; only a ready one has stats"),
        )
    };
    let measured = shared.pods.pod_usage(vec![view.ok_or_else(ended)?]).await?;
    let stats = measured
        .first()
        .map(|usage| convert::pod_stats(usage, &shared.node.layers_dir));
    Ok(cri::PodSandboxStatsResponse { stats })
}

/// ListPodSandboxStats.
pub(super) async fn list_pods(
    shared: Arc<Shared>,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Failure> {
    let measured = pods(&shared, request.try_into()?).await?;
    let root = &shared.node.layers_dir;
    Ok(convert::list(
        measured.iter().map(|usage| convert::pod_stats(usage, root)),
    ))
}

/// StreamPodSandboxStats: the same list in several messages.
pub(super) async fn stream_pods(
    shared: Arc<Shared>,
    request: cri::StreamPodSandboxStatsRequest,
) -> Result<Replies<cri::StreamPodSandboxStatsResponse>, Failure> {
    let measured = pods(&shared, request.try_into()?).await?;
    let render = move |usage| convert::pod_stats(&usage, &shared.node.layers_dir);
    Ok(replies(measured.into_iter().map(render)))
}

/// What all writable layers together take, as last measured: bytes, and files and directories.
pub(super) async fn written(shared: &Shared) -> Result<(u64, u64), Failure> {
    let measured = containers(shared, ContainerFilter::default()).await?;
    let layers = measured.iter().filter_map(|usage| usage.layer.as_ref());
    Ok(layers.fold((0, 0), |(bytes, files), layer| {
        (bytes + layer.bytes, files + layer.inodes)
    }))
}

async fn containers(
    shared: &Shared,
    filter: ContainerFilter,
) -> Result<Vec<ContainerUsage>, Failure> {
    Ok(shared.pods.container_usage(chosen(shared, filter)).await?)
}

async fn pods(shared: &Shared, filter: PodFilter) -> Result<Vec<PodUsage>, Failure> {
    let mut chosen = filter.select(shared.pods.pods());
    chosen.retain(|view| view.ready);
    Ok(shared.pods.pod_usage(chosen).await?)
}
