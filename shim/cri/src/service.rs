//! The generated service traits, one line for each RPC: its deadline and the function that answers it.
//!
//! Called by tonic. Invariant: all 43 RPCs of the protocol are here, and those that this build does not implement
//! answer Unimplemented with their own name.
//! Must not know: what an RPC does.

use std::sync::Arc;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_proto::runtime::v1::image_service_server::ImageService;
use coracle_proto::runtime::v1::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status};

use super::events::Replies;
use super::status::Failure;
use super::{
    Cri, Shared, containers, convert, events, exec, images, metrics, pods, runtime, stats,
    streaming, update,
};

/// The deadline of most calls whose client sent none: the kubelet's own default.
const USUAL: Duration = Duration::from_secs(120);

fn usual<Q>(_: &Q) -> Option<Duration> {
    Some(USUAL)
}

/// The kubelet gives RunPodSandbox twice the usual time.
fn twice<Q>(_: &Q) -> Option<Duration> {
    Some(USUAL * 2)
}

/// A stop may take its grace period and the usual time.
fn after_grace(request: &cri::StopContainerRequest) -> Option<Duration> {
    Some(USUAL + convert::grace(request).unwrap_or_default())
}

/// A pull takes as long as it makes progress; its client cancels it.
fn unbounded<Q>(_: &Q) -> Option<Duration> {
    None
}

/// Answers an RPC that this build does not implement.
async fn not_built<Q, A>(_: Arc<Shared>, _: Q) -> Result<A, Failure> {
    Err(Failure::NotBuilt)
}

/// Writes the implementation of one generated trait from lines of the form
/// `method = "Rpc"(Request) -> Response, deadline, function;`, streamed replies after the unary ones.
macro_rules! serve {
    ($service:ident {
        $($method:ident = $rpc:literal($request:ident) -> $reply:ident, $limit:path, $act:expr;)*
    } streams {
        $($smethod:ident as $stream:ident = $srpc:literal($srequest:ident) -> $sreply:ident, $sact:expr;)*
    }) => {
        #[tonic::async_trait]
        impl $service for Cri {
            $(async fn $method(&self, request: Request<cri::$request>) -> Result<Response<cri::$reply>, Status> {
                let limit = $limit(request.get_ref());
                self.answer(concat!("runtime.v1.", stringify!($service), "/", $rpc), limit, request, $act).await
            })*
            $(
                type $stream = Replies<cri::$sreply>;

                async fn $smethod(&self, request: Request<cri::$srequest>) -> Result<Response<Self::$stream>, Status> {
                    self.answer(concat!("runtime.v1.", stringify!($service), "/", $srpc), Some(USUAL), request, $sact).await
                }
            )*
        }
    };
}

serve! { RuntimeService {
    version = "Version"(VersionRequest) -> VersionResponse, usual, runtime::version;
    status = "Status"(StatusRequest) -> StatusResponse, usual, runtime::status;
    runtime_config = "RuntimeConfig"(RuntimeConfigRequest) -> RuntimeConfigResponse, usual, runtime::config;
    update_runtime_config = "UpdateRuntimeConfig"(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse, usual, runtime::update_config;

    run_pod_sandbox = "RunPodSandbox"(RunPodSandboxRequest) -> RunPodSandboxResponse, twice, pods::run;
    stop_pod_sandbox = "StopPodSandbox"(StopPodSandboxRequest) -> StopPodSandboxResponse, usual, pods::stop;
    remove_pod_sandbox = "RemovePodSandbox"(RemovePodSandboxRequest) -> RemovePodSandboxResponse, usual, pods::remove;
    pod_sandbox_status = "PodSandboxStatus"(PodSandboxStatusRequest) -> PodSandboxStatusResponse, usual, pods::status;
    list_pod_sandbox = "ListPodSandbox"(ListPodSandboxRequest) -> ListPodSandboxResponse, usual, pods::list;

    create_container = "CreateContainer"(CreateContainerRequest) -> CreateContainerResponse, usual, containers::create;
    start_container = "StartContainer"(StartContainerRequest) -> StartContainerResponse, usual, containers::start;
    stop_container = "StopContainer"(StopContainerRequest) -> StopContainerResponse, after_grace, containers::stop;
    remove_container = "RemoveContainer"(RemoveContainerRequest) -> RemoveContainerResponse, usual, containers::remove;
    list_containers = "ListContainers"(ListContainersRequest) -> ListContainersResponse, usual, containers::list;
    container_status = "ContainerStatus"(ContainerStatusRequest) -> ContainerStatusResponse, usual, containers::status;
    reopen_container_log = "ReopenContainerLog"(ReopenContainerLogRequest) -> ReopenContainerLogResponse, usual, containers::reopen_log;

    update_container_resources = "UpdateContainerResources"(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse, usual, update::container;
    update_pod_sandbox_resources = "UpdatePodSandboxResources"(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse, usual, update::pod;
    exec_sync = "ExecSync"(ExecSyncRequest) -> ExecSyncResponse, exec::limit, exec::sync;
    exec = "Exec"(ExecRequest) -> ExecResponse, usual, streaming::exec;
    attach = "Attach"(AttachRequest) -> AttachResponse, usual, streaming::attach;
    port_forward = "PortForward"(PortForwardRequest) -> PortForwardResponse, usual, streaming::port_forward;
    container_stats = "ContainerStats"(ContainerStatsRequest) -> ContainerStatsResponse, usual, stats::container;
    list_container_stats = "ListContainerStats"(ListContainerStatsRequest) -> ListContainerStatsResponse, usual, stats::list_containers;
    pod_sandbox_stats = "PodSandboxStats"(PodSandboxStatsRequest) -> PodSandboxStatsResponse, usual, stats::pod;
    list_pod_sandbox_stats = "ListPodSandboxStats"(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse, usual, stats::list_pods;
    checkpoint_container = "CheckpointContainer"(CheckpointContainerRequest) -> CheckpointContainerResponse, usual, not_built;
    checkpoint_pod = "CheckpointPod"(CheckpointPodRequest) -> CheckpointPodResponse, usual, not_built;
    restore_pod = "RestorePod"(RestorePodRequest) -> RestorePodResponse, usual, not_built;
    list_metric_descriptors = "ListMetricDescriptors"(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse, usual, metrics::descriptors;
    list_pod_sandbox_metrics = "ListPodSandboxMetrics"(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse, usual, metrics::list;
} streams {
    get_container_events as GetContainerEventsStream = "GetContainerEvents"(GetEventsRequest) -> ContainerEventResponse, events::watch;
    stream_pod_sandboxes as StreamPodSandboxesStream = "StreamPodSandboxes"(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse, pods::stream;
    stream_containers as StreamContainersStream = "StreamContainers"(StreamContainersRequest) -> StreamContainersResponse, containers::stream;
    stream_container_stats as StreamContainerStatsStream = "StreamContainerStats"(StreamContainerStatsRequest) -> StreamContainerStatsResponse, stats::stream_containers;
    stream_pod_sandbox_stats as StreamPodSandboxStatsStream = "StreamPodSandboxStats"(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse, stats::stream_pods;
    stream_pod_sandbox_metrics as StreamPodSandboxMetricsStream = "StreamPodSandboxMetrics"(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse, metrics::stream;
} }

serve! { ImageService {
    pull_image = "PullImage"(PullImageRequest) -> PullImageResponse, unbounded, images::pull;
    image_status = "ImageStatus"(ImageStatusRequest) -> ImageStatusResponse, usual, images::status;
    remove_image = "RemoveImage"(RemoveImageRequest) -> RemoveImageResponse, usual, images::remove;
    list_images = "ListImages"(ListImagesRequest) -> ListImagesResponse, usual, images::list;
    image_fs_info = "ImageFsInfo"(ImageFsInfoRequest) -> ImageFsInfoResponse, usual, images::fs_info;
} streams {
    stream_images as StreamImagesStream = "StreamImages"(StreamImagesRequest) -> StreamImagesResponse, images::stream;
} }
