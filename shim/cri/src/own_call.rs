//! A call of the daemon to itself, through its socket, as the kubelet's calls come.
//!
//! Called by: the shim's watchdog. Invariants: it takes the way of every call, accept(2), HTTP/2 and the service, and asks for
//! nothing that a pod, a plugin, a disk or a network could hold up; it begins no trace.
//! Must not know: what its answer decides.

use std::path::Path;

use coracle_proto::runtime::v1::VersionRequest;
use coracle_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::metadata::MetadataValue;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Status};

/// A trace that its caller does not record. Source: W3C Trace Context.
const NO_TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Calls Version on `socket`. Waits for as long as the answer takes. Errors: the socket cannot be connected to, or the call
/// has failed.
pub async fn call_self(socket: &Path) -> Result<(), Status> {
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await;
    let channel = channel.map_err(|error| Status::from_error(error.into()))?;
    let mut request = Request::new(VersionRequest::default());
    let trace = MetadataValue::from_static(NO_TRACE);
    request.metadata_mut().insert("traceparent", trace);
    let answer = RuntimeServiceClient::new(channel).version(request).await;
    answer.map(drop)
}
