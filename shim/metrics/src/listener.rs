//! The HTTP listener for scrapes.
//!
//! Called by: the shim's `serve`. Calls: its [`Source`] for each request. Invariants: it answers GET and nothing else; a
//! connection is for one request, lives at most `CONNECTION_LIMIT`, and there are at most `MAX_CONNECTIONS`; text is
//! made while it is sent, on the blocking pool and for one connection at a time. It is read-only and has no secrets, but no
//! authentication either: the configuration lets it listen on loopback only.
//! Must not know: what the text says.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet, spawn_blocking};

use super::Format;

/// How long a connection may live: a scrape is done within 10 s, and a slow reader gets twice as long again.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// Connections at a time; more wait in the kernel.
const MAX_CONNECTIONS: usize = 16;
/// How long gathering may take.
const GATHER_LIMIT: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// What the kernel holds of a connection's text, and what we do. Bytes.
const SEND_BUFFER: u32 = 64 << 10;
const TEXT_BUFFER: usize = 64 << 10;
/// Connections that the kernel has accepted and we have not.
const BACKLOG: u32 = 128;
/// The pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(500);

/// For each chunk that is being made, so that scrapes take one thread of the blocking pool at most.
static MAKING: Semaphore = Semaphore::const_new(1);

/// Text in parts, each made when the one before it is sent. Making one may block.
pub type Chunks = Box<dyn Iterator<Item = String> + Send>;

/// What the listener answers.
pub enum Answer {
    /// Text of metrics.
    Metrics(Chunks),
    /// A document for browsers.
    Page(Arc<str>),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot be made.
    Failed(String),
    /// Too many others are being answered; the client may try again.
    Busy(String),
}

/// What the listener serves.
pub trait Source: Send + Sync + 'static {
    /// The paths that there are.
    fn paths(&self) -> &'static [&'static str];

    /// What is at one of [`Source::paths`]. Errors: the reason, for the client.
    fn gather(
        self: Arc<Self>,
        path: &'static str,
        format: Format,
    ) -> BoxFuture<'static, Result<Answer, Refusal>>;
}

/// The listener cannot start: its address is in use, or not this node's.
#[derive(Debug, thiserror::Error)]
#[error("listen for scrapes of metrics on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A running listener; it ends when it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// The address it listens on.
    pub address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Listener {
    /// Listens on `address`; port 0 is any.
    pub async fn bind(address: SocketAddr, source: Arc<dyn Source>) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address, source };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, source));
        Ok(Listener {
            address,
            _accepting: accepting,
        })
    }
}

/// A listener whose connections have small buffers in the kernel.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, source: Arc<dyn Source>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let source = Arc::clone(&source);
                tokio::spawn(async move {
                    // Past its limit the connection is closed; a client sees that its text was cut.
                    let _ = tokio::time::timeout(CONNECTION_LIMIT, serve(socket, source)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no scrape can be accepted; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, source: Arc<dyn Source>) {
    let service = service_fn(|request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, source).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_buf_size(TEXT_BUFFER)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a scrape ended early");
    }
}

type Body = StreamBody<Frames>;
type Frames = BoxStream<'static, Result<Frame<Bytes>, JoinError>>;

async fn answer(request: &Request<Incoming>, source: Arc<dyn Source>) -> Response<Body> {
    let paths = source.paths();
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        let allowed = http::HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let requested = request.uri().path();
    let Some(path) = paths.iter().find(|path| **path == requested) else {
        let text = format!("nothing is here; there is {}\n", paths.join(" and "));
        return plain(StatusCode::NOT_FOUND, text);
    };
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match tokio::time::timeout(GATHER_LIMIT, source.gather(path, format)).await {
        Ok(Ok(Answer::Metrics(chunks))) => {
            response(StatusCode::OK, format.content_type(), frames(chunks))
        }
        Ok(Ok(Answer::Page(page))) if names_this_node(request.headers().get(HOST)) => {
            document(page)
        }
        Ok(Ok(Answer::Page(_))) => {
            let text = "the page is shown at an address or at localhost only\n";
            plain(StatusCode::MISDIRECTED_REQUEST, text.to_owned())
        }
        Ok(Err(Refusal::Failed(reason))) => plain(StatusCode::INTERNAL_SERVER_ERROR, reason + "\n"),
        Ok(Err(Refusal::Busy(reason))) => plain(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        Err(_) => {
            let text = format!("nothing was gathered within {} s\n", GATHER_LIMIT.as_secs());
            plain(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// Whether a request's `Host` cannot be a name of somebody else, who let it resolve to this node so that a script of theirs, in
/// a browser here, reads the page.
fn names_this_node(host: Option<&http::HeaderValue>) -> bool {
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// A document: it may load and run nothing, and be shown nowhere but in a window of its own.
fn document(page: Arc<str>) -> Response<Body> {
    // Shared, not copied: many clients may be slow.
    let frame: Result<_, JoinError> = Ok(Frame::data(Bytes::from_owner(Document(page))));
    let frames = Box::pin(stream::once(std::future::ready(frame)));
    let mut response = response(StatusCode::OK, "text/html; charset=utf-8", frames);
    for (name, value) in [
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        let value = http::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// A page as bytes.
struct Document(Arc<str>);

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let frame: Result<_, JoinError> = Ok(Frame::data(Bytes::from(text)));
    let frames = Box::pin(stream::once(std::future::ready(frame)));
    response(status, "text/plain; charset=utf-8", frames)
}

fn response(status: StatusCode, content_type: &'static str, frames: Frames) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(frames));
    *response.status_mut() = status;
    let content_type = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    let no_sniffing = http::HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, no_sniffing);
    response
}

/// `chunks` as they are sent. A panic is an error: the connection is closed, and the client sees that its text was cut.
fn frames(chunks: Chunks) -> Frames {
    Box::pin(stream::unfold(Some(chunks), |chunks| async move {
        let mut chunks = chunks?;
        // The semaphore is never closed.
        let place = MAKING.acquire().await.ok()?;
        let made = spawn_blocking(move || {
            let chunk = chunks.next();
            drop(place);
            (chunk, chunks)
        });
        match made.await {
            Ok((chunk, rest)) => Some((Ok(Frame::data(Bytes::from(chunk?))), Some(rest))),
            Err(panic) => Some((Err(panic), None)),
        }
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;
    use futures_util::future::join_all;

    use super::*;

    /// Three chunks; each asserts that it is made on another thread than `own`, and alone.
    fn chunks(own: std::thread::ThreadId, making: &Arc<AtomicUsize>) -> Chunks {
        let making = Arc::clone(making);
        Box::new((0..3).map(move |number| {
            assert_ne!(std::thread::current().id(), own);
            assert_eq!(making.fetch_add(1, Ordering::SeqCst), 0);
            std::thread::sleep(Duration::from_millis(2));
            making.fetch_sub(1, Ordering::SeqCst);
            format!("{number}\n")
        }))
    }

    #[tokio::test]
    async fn text_is_made_off_the_threads_that_answer_and_one_chunk_at_a_time() {
        let (own, making) = (std::thread::current().id(), Arc::default());
        let scrapes = (0..4).map(|_| frames(chunks(own, &making)).collect::<Vec<_>>());
        for sent in join_all(scrapes).await {
            let sent = sent.into_iter().map(|frame| frame.unwrap().into_data());
            let sent: Vec<u8> = sent.flat_map(|data| data.unwrap()).collect();
            assert_eq!(sent, b"0\n1\n2\n");
        }
    }

    #[test]
    fn a_name_of_somebody_else_is_refused() {
        let of = |host: &'static str| names_this_node(Some(&http::HeaderValue::from_static(host)));
        for good in [
            "127.0.0.1:9487",
            "127.0.0.1",
            "[::1]:9487",
            "localhost:9487",
            "LocalHost",
        ] {
            assert!(of(good), "{good}");
        }
        for bad in [
            "evil.example:9487",
            "127.0.0.1.evil.example",
            "",
            "evil",
            "localhost.evil.example:1",
        ] {
            assert!(!of(bad), "{bad}");
        }
        assert!(names_this_node(None));
    }

    #[tokio::test]
    async fn text_that_cannot_be_made_is_cut() {
        let chunks = std::iter::once_with(|| -> String { panic!("no text") });
        let sent: Vec<_> = frames(Box::new(chunks)).collect().await;
        assert!(matches!(&sent[..], [Err(_)]));
    }
}
