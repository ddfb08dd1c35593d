//! Outgoing requests of `wasi:http`: our own connections, checked against the guest's policy.
//!
//! wasmtime-wasi-http calls it for each request. A connection that was kept from an earlier request to the same authority
//! serves it; otherwise it resolves the host, checks the addresses, connects to one of those it checked, over TLS for
//! `https`, and speaks HTTP/2 where a server over TLS offers it (ALPN), else HTTP/1.1.
//! Invariants: each connection is made to an address that [`Guard`] allows, and serves one authority; every wait has a timeout, the guest's if it set
//! one; the size of a response's head is bounded.
//! Incoming requests are not handled here; redirects and proxies are the guest's task.

mod body;
mod pool;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Body as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use self::body::Timed;
use self::pool::{Pool, Sender, Unanswered};
use self::tls::Tls;
use super::network::{Failure, Guard};

/// How long connecting may take, unless the guest sets a timeout.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a server may take to answer, and pause in its body, unless the guest sets a timeout.
const ANSWER: Duration = Duration::from_secs(300);
/// Most header fields of a response, and most bytes of its head.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 * 1024;

type Outcome = Result<(
    Response<WasiBody>,
    Box<dyn Future<Output = Result<()>> + Send>,
)>;

/// The HTTP client of one guest; a clone is the same one.
#[derive(Clone)]
pub(super) struct Client {
    guard: Arc<Guard>,
    tls: Arc<Tls>,
    pool: Arc<Pool>,
}

impl Client {
    /// A client that connects only where `guard` allows.
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self {
            guard,
            tls: Arc::default(),
            pool: Arc::default(),
        }
    }
}

impl Client {
    /// Sends one request and gives its answer, whose body is read as it comes. Errors: as of `wasi:http`.
    pub(super) async fn fetch(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>> {
        self.send(request, options).await
    }
}

impl WasiHttpHooks for Client {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Outcome> + Send> {
        let own = self.clone();
        Box::new(async move {
            let response = own.send(request, options.unwrap_or_default()).await?;
            // What goes wrong with the connection ends the response's body.
            let end: Box<dyn Future<Output = Result<()>> + Send> = Box::new(async { Ok(()) });
            Ok((response, end))
        })
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    fn of(uri: &Uri) -> Result<Self> {
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        // A request's URI has no user names, and some parsers take the part before an @ for the host.
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(Error::HttpRequestUriInvalid);
        }
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        Ok(Self {
            host: authority.host().to_ascii_lowercase(),
            port: port(authority, tls)?,
            tls,
        })
    }
}

fn port(authority: &Authority, tls: bool) -> Result<u16> {
    let behind = &authority.as_str()[authority.host().len()..];
    match behind {
        "" => Ok(if tls { 443 } else { 80 }),
        _ => match authority.port_u16() {
            None | Some(0) => Err(Error::HttpRequestUriInvalid),
            Some(port) => Ok(port),
        },
    }
}

impl Client {
    async fn send(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>> {
        let endpoint = Endpoint::of(request.uri())?;
        let again = repeated(&request);
        let mut request = Some(request);
        while let Some(next) = request.take() {
            let Some(sender) = self.pool.take(&endpoint) else {
                request = Some(next);
                break;
            };
            match self.exchange(&endpoint, sender, next, &options).await? {
                Ok(response) => return Ok(response),
                // The server had closed it meanwhile.
                Err(unanswered) => match (unanswered.request, &again) {
                    (Some(unsent), _) => request = Some(unsent),
                    (None, Some(_)) if was_closed(&unanswered.error) => break,
                    (None, _) => return Err(broken(unanswered.error)),
                },
            }
        }
        let request = request.or(again).ok_or(Error::ConnectionTerminated)?;
        let opening = open(&self.guard, &self.tls, &endpoint);
        let sender = timeout(options.connect_timeout.unwrap_or(CONNECT), opening)
            .await
            .map_err(|_| Error::ConnectionTimeout)??;
        self.pool.share(&endpoint, &sender);
        let answered = self.exchange(&endpoint, sender, request, &options).await?;
        answered.map_err(Error::from)
    }

    /// Sends a request on a connection, which is kept afterwards. Outer errors: it takes too long, or cannot be sent.
    async fn exchange(
        &self,
        endpoint: &Endpoint,
        mut sender: Sender,
        request: Request<WasiBody>,
        options: &RequestOptions,
    ) -> Result<std::result::Result<Response<WasiBody>, Unanswered>> {
        let first = options.first_byte_timeout.unwrap_or(ANSWER);
        let answer = timeout(first, sender.send(request)).await;
        let response = match answer.map_err(|_| Error::ConnectionReadTimeout)?? {
            Ok(response) => response,
            Err(unanswered) => return Ok(Err(unanswered)),
        };
        self.pool.keep_when_ready(endpoint.clone(), sender);
        let pause = options.between_bytes_timeout.unwrap_or(ANSWER);
        Ok(Ok(
            response.map(|body| Timed::new(body, pause).boxed_unsync())
        ))
    }
}

/// The same request once more, should a kept connection turn out to be closed after it was sent: one without a body, of a
/// method that may be repeated. Source: RFC 9110, section 9.2.2.
fn repeated(request: &Request<WasiBody>) -> Option<Request<WasiBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let empty = Empty::new().map_err(|never| match never {});
    let mut again = Request::new(empty.boxed_unsync());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// Whether the server ended the connection before it began to answer.
fn was_closed(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed()
}

/// A new connection, driven beside the requests on it.
async fn open(guard: &Guard, tls: &Tls, endpoint: &Endpoint) -> Result<Sender> {
    let (stream, is_http2) = connect(guard, tls, endpoint).await?;
    let io = TokioIo::new(stream);
    if is_http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .handshake(io)
            .await?;
        tokio::spawn(connection);
        return Ok(Sender::H2(sender));
    }
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(io)
        .await?;
    tokio::spawn(connection);
    Ok(Sender::H1(sender))
}

/// The URI as it is sent to a server: scheme and authority are only for proxies.
fn only_path(uri: &Uri) -> Result<Uri> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    path.parse().map_err(|_| Error::HttpRequestUriInvalid)
}

fn broken(error: hyper::Error) -> Error {
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else {
        Error::Hyper(error)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is allowed, and whether its server has chosen HTTP/2.
async fn connect(guard: &Guard, tls: &Tls, endpoint: &Endpoint) -> Result<(Box<dyn Stream>, bool)> {
    let addresses = guard.resolve(&endpoint.host).await?;
    let targets = addresses
        .iter()
        .map(|ip| SocketAddr::new(*ip, endpoint.port));
    let permitted: Vec<_> = targets
        .filter(|target| guard.may_connect(*target))
        .collect();
    let mut failed = Error::DestinationIpProhibited;
    for target in permitted {
        match TcpStream::connect(target).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                if !endpoint.tls {
                    return Ok((Box::new(stream), false));
                }
                let stream = tls.wrap(&endpoint.host, stream).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
                return Ok((Box::new(stream), is_http2));
            }
            Err(error) => failed = refused(error),
        }
    }
    Err(failed)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid => Self::HttpRequestUriInvalid,
            Failure::Denied => Self::HttpRequestDenied,
            Failure::Absent => Self::DnsError {
                rcode: Some("NXDOMAIN".to_owned()),
                info_code: None,
            },
            Failure::Unanswered => Self::DnsTimeout,
        }
    }
}

fn refused(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Error::DestinationIpUnroutable
        }
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::ConnectionReset => Error::ConnectionTerminated,
        // The pod's packet filter refused.
        io::ErrorKind::PermissionDenied => Error::DestinationIpProhibited,
        _ => Error::Connect(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
