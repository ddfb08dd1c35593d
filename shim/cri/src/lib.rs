//! The CRI server: binds the socket, serves both services and our own for archives on it, and drains when the daemon stops.
//!
//! Calls: kubelet -> here -> `cri/*` (convert, request, render) -> [`coracle_lifecycle`] or the image store. Called by
//! the shim's `serve`. `pods`, `containers`, `images`, `runtime` and `events` have one function for each RPC; `service`
//! connects them to the generated traits.
//! Invariants: every RPC of the protocol has an answer, if only Unimplemented with its own name; each runs in one span,
//! under one deadline, and a panic in it becomes an answer; only `convert` names fields of messages and only `status`
//! names gRPC codes.
//! Must not know: states of pods and containers, how effects are carried out.

mod archives;
mod authority;
mod bad_request;
pub mod calls;
mod containers;
mod convert;
mod crowd;
mod events;
mod exec;
mod images;
mod metrics;
mod node;
mod own_call;
mod pods;
pub mod policy;
mod runtime;
#[cfg(test)]
#[path = "../../src/scratch.rs"]
mod scratch;
mod service;
mod socket;
mod span;
mod stats;
mod status;
mod streaming;
mod update;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_proto::archives::v1::archive_service_server::ArchiveServiceServer;
use coracle_proto::runtime::v1::image_service_server::ImageServiceServer;
use coracle_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use coracle_spec::live::Live;
use coracle_telemetry::Collector;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, info, warn};

pub use self::node::{CgroupDriver, Node};
pub use self::own_call::call_self;
use self::policy::Policies;
pub use self::socket::Socket;
use self::status::Failure;

/// The largest message in either direction, in bytes: what the kubelet's client accepts.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How long calls in flight may continue after a shutdown was requested.
const DRAIN: Duration = Duration::from_secs(10);

/// Calls that one client connection may have in flight; the kubelet uses one connection for all of its calls.
const STREAMS_PER_CONNECTION: u32 = 4096;

/// How long a connection may be silent before its client is asked whether it is there, and how long the answer may take. Any
/// HTTP/2 library answers, whatever its program does; a process that is stopped does not, and would hold its replies for ever.
const KEEPALIVE: Duration = Duration::from_secs(120);

/// The server cannot accept connections any more: the socket failed.
#[derive(Debug, thiserror::Error)]
#[error("serve the container runtime interface on {path}")]
pub struct ServeError {
    path: String,
    source: tonic::transport::Error,
}

/// State of all RPCs; one for the whole daemon.
struct Shared {
    pods: coracle_lifecycle::Pods,
    images: coracle_images::Images,
    streaming: coracle_streaming::Server,
    node: Node,
    policies: Arc<Live<Policies>>,
    metrics: Arc<Collector>,
    on_call: fn(),
    /// Becomes true when the daemon drains; ends streams that have no end of their own.
    draining: watch::Receiver<bool>,
}

impl Shared {
    fn new(parts: Parts, draining: watch::Receiver<bool>) -> Shared {
        let Parts {
            pods,
            images,
            streaming,
            node,
            policies,
            metrics,
            on_call,
        } = parts;
        Shared {
            pods,
            images,
            streaming,
            node,
            policies,
            metrics,
            on_call,
            draining,
        }
    }
}

/// The parts that calls are answered from.
pub struct Parts {
    /// Pods and containers.
    pub pods: coracle_lifecycle::Pods,
    /// The image store.
    pub images: coracle_images::Images,
    /// Sessions of exec, attach and port-forward.
    pub streaming: coracle_streaming::Server,
    /// The facts that Status and RuntimeConfig report.
    pub node: Node,
    /// What the operator lets the pods of each handler do.
    pub policies: Arc<Live<Policies>>,
    /// Measures containers for metrics.
    pub metrics: Arc<Collector>,
    /// Called with each call, in the daemon's tokio runtime. Must not block.
    pub on_call: fn(),
}

/// The services; a clone is another handle to the same.
#[derive(Clone)]
struct Cri(Arc<Shared>);

/// Serves CRI on `socket` until `shutdown` resolves, then drains for at most 10 seconds and removes the socket. `parts`
/// answer the calls.
///
/// Errors: [`ServeError`] when the listener failed; never because of a client.
pub fn serve(
    socket: Socket,
    parts: Parts,
    shutdown: BoxFuture<'static, ()>,
) -> BoxFuture<'static, Result<(), ServeError>> {
    // Boxed so that the services are compiled with this crate: the code of an async function is compiled where it is
    // awaited.
    Box::pin(serve_until(socket, parts, shutdown))
}

async fn serve_until(
    socket: Socket,
    parts: Parts,
    shutdown: BoxFuture<'static, ()>,
) -> Result<(), ServeError> {
    let path = socket.path().display().to_string();
    let (drain, draining) = watch::channel(false);
    let mut stop = draining.clone();
    let cri = Cri(Arc::new(Shared::new(parts, draining)));
    let stopped = async move {
        // An error means that the sender is gone, which is a stop, too.
        let _ = stop.wait_for(|on| *on).await;
    };
    let server = builder(KEEPALIVE)
        .add_service(
            RuntimeServiceServer::new(cri.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ImageServiceServer::new(cri.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(ArchiveServiceServer::new(cri).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(socket::incoming(socket.listener), stopped);
    info!(socket = path, "serving the container runtime interface");
    let outcome = drained(server, shutdown, &drain, DRAIN).await;
    socket.name.remove();
    outcome.map_err(|source| ServeError { path, source })
}

/// A server without services.
fn builder(keepalive: Duration) -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive))
}

/// Runs `server`; once `shutdown` resolved, signals `drain` and waits `limit` for it.
async fn drained<E>(
    server: impl Future<Output = Result<(), E>>,
    shutdown: impl Future<Output = ()>,
    drain: &watch::Sender<bool>,
    limit: Duration,
) -> Result<(), E> {
    let mut server = std::pin::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown => {}
    }
    info!("draining calls in flight");
    drain.send_replace(true);
    match tokio::time::timeout(limit, server).await {
        Ok(ended) => ended,
        Err(_) => {
            warn!(
                limit_s = limit.as_secs(),
                "calls were still in flight when the drain ended"
            );
            Ok(())
        }
    }
}

impl Cri {
    /// Answers `request` with `act`, under its client's deadline or else `own`.
    async fn answer<Q, A, F>(
        &self,
        method: &'static str,
        own: Option<Duration>,
        request: Request<Q>,
        act: fn(Arc<Shared>, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, Failure>>,
    {
        let limit = client_deadline(request.metadata())
            .map(before_the_transport)
            .or(own);
        (self.0.on_call)();
        let call = span::call(method, request.metadata());
        answered(call, limit, act(self.0.clone(), request.into_inner())).await
    }
}

/// Answers one RPC with `work`: in its spans, within `limit`. A panic is caught; a failure becomes a gRPC status and is
/// logged once. At its limit, or when the client goes away, `work` is dropped.
async fn answered<A>(
    call: span::Call,
    limit: Option<Duration>,
    work: impl Future<Output = Result<A, Failure>>,
) -> Result<Response<A>, Status> {
    let work = AssertUnwindSafe(work).catch_unwind();
    let rpc = call.rpc;
    call.run(async move {
        let counted = calls::begin(rpc);
        let began = Instant::now();
        let outcome = match limit {
            None => work.await,
            // Too short for a timer: `work` gets no time beyond the first poll.
            Some(limit) if limit.is_zero() => {
                work.now_or_never().unwrap_or(Ok(Err(Failure::Deadline)))
            }
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(outcome) => outcome,
                Err(_) => Ok(Err(Failure::Deadline)),
            },
        };
        let took_ms = began.elapsed().as_millis() as u64;
        match outcome.unwrap_or_else(|panic| Err(Failure::panicked(panic.as_ref()))) {
            Ok(reply) => {
                debug!(took_ms, "call answered");
                counted.end(Code::Ok);
                Ok(Response::new(reply))
            }
            Err(failure) => {
                let status = failure.into_status(rpc);
                counted.end(status.code());
                Err(status)
            }
        }
    })
    .await
}

/// The deadline that the client sent in `grpc-timeout`: at most 8 digits and a unit.
fn client_deadline(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A little less than the client's deadline. The transport enforces the same header, but answers Cancelled; the kubelet
/// needs DeadlineExceeded, so this side has to be first.
fn before_the_transport(limit: Duration) -> Duration {
    let margin = (limit / 16).clamp(Duration::from_millis(2), Duration::from_millis(50));
    limit.saturating_sub(margin)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    fn deadline_of(text: &str) -> Option<Duration> {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().unwrap());
        client_deadline(&metadata)
    }

    #[test]
    fn client_deadlines_are_read_in_every_unit() {
        for (text, want) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("7S", Duration::from_secs(7)),
            ("119999m", Duration::from_millis(119_999)),
            ("250u", Duration::from_micros(250)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(deadline_of(text), Some(want), "{text}");
        }
        for odd in ["", "S", "100000000S", "5x", "-5S", "+5S", "1.5S"] {
            assert_eq!(deadline_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn our_deadline_is_always_before_the_transports() {
        for limit in [0, 1, 2, 10, 1_000, 120_000].map(Duration::from_millis) {
            let ours = before_the_transport(limit);
            assert!(ours < limit || limit.is_zero(), "{limit:?}");
            assert!(limit - ours <= Duration::from_millis(50), "{limit:?}");
        }
    }

    async fn outcome(
        limit: Option<Duration>,
        work: impl Future<Output = Result<u8, Failure>>,
    ) -> Result<u8, Code> {
        let call = span::call("runtime.v1.RuntimeService/Status", &Default::default());
        answered(call, limit, work)
            .await
            .map(Response::into_inner)
            .map_err(|status| status.code())
    }

    #[tokio::test]
    async fn every_end_of_a_call_is_an_answer() {
        let short = Some(Duration::from_millis(5));
        assert_eq!(outcome(short, async { Ok(7) }).await, Ok(7));
        assert_eq!(outcome(None, async { Ok(7) }).await, Ok(7));
        assert_eq!(
            outcome(None, async { Err(Failure::NotBuilt) }).await,
            Err(Code::Unimplemented)
        );
        assert_eq!(
            outcome(short, async { panic!("index out of bounds") }).await,
            Err(Code::Internal)
        );
        assert_eq!(
            outcome(short, std::future::pending()).await,
            Err(Code::DeadlineExceeded)
        );
    }

    #[tokio::test]
    async fn a_call_past_its_deadline_drops_its_work() {
        let (held, released) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _held = held;
            std::future::pending().await
        };
        assert_eq!(
            outcome(Some(Duration::ZERO), work).await,
            Err(Code::DeadlineExceeded)
        );
        assert!(
            released.await.is_err(),
            "the work still holds its resources"
        );
    }

    #[tokio::test]
    async fn a_drain_that_never_ends_is_bounded() {
        let (drain, seen) = watch::channel(false);
        let never = std::future::pending::<Result<(), ()>>();
        drained(never, async {}, &drain, Duration::from_millis(20))
            .await
            .unwrap();
        assert!(*seen.borrow());
    }

    #[tokio::test]
    async fn a_client_that_is_stopped_loses_its_connection() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let short = Duration::from_millis(200);
        let (own, mut client) = tokio::net::UnixStream::pair().unwrap();
        let connections = futures_util::stream::iter([Ok::<_, std::io::Error>(own)]);
        let connections = connections.chain(futures_util::stream::pending());
        let routes = tonic::service::Routes::default();
        let began = Instant::now();
        tokio::spawn(
            builder(short)
                .add_routes(routes)
                .serve_with_incoming(connections),
        );
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat();
        client.write_all(&begin).await.unwrap();
        let mut said = Vec::new();
        let closed = tokio::time::timeout(short * 300, client.read_to_end(&mut said));
        closed.await.unwrap().unwrap();
        assert!(began.elapsed() >= short, "it was asked first");
    }
}
