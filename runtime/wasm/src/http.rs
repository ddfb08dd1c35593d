//! Outgoing requests of `wasi:http`: our own connections, checked against the guest's policy.
//!
//! wasmtime-wasi-http calls it for each request. It resolves the host, checks the addresses, connects to one of those
//! it checked, and speaks HTTP/1.1, over TLS for `https`.
//! Invariants: it connects only to addresses that [`Guard`] allows; every wait has a timeout, the guest's if it set
//! one; the size of a response's head is bounded.
//! Incoming requests are not handled here; redirects and proxies are the guest's task.

mod body;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use self::body::Timed;
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
}

impl Client {
    /// A client that connects only where `guard` allows.
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self {
            guard,
            tls: Arc::default(),
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
        let (response, _) = send(&self.guard, &self.tls, request, options).await?;
        Ok(response)
    }
}

impl WasiHttpHooks for Client {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Outcome> + Send> {
        let (guard, tls) = (Arc::clone(&self.guard), Arc::clone(&self.tls));
        Box::new(async move { send(&guard, &tls, request, options.unwrap_or_default()).await })
    }
}

/// Where a request goes.
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
            host: authority.host().to_owned(),
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

async fn send(
    guard: &Guard,
    tls: &Tls,
    mut request: Request<WasiBody>,
    options: RequestOptions,
) -> Outcome {
    let endpoint = Endpoint::of(request.uri())?;
    let connecting = connect(guard, tls, &endpoint);
    let stream = timeout(options.connect_timeout.unwrap_or(CONNECT), connecting)
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    *request.uri_mut() = only_path(request.uri())?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    // Runs beside the request; ends with the response's body, or when that is dropped.
    let connection = tokio::spawn(connection);
    let first = options.first_byte_timeout.unwrap_or(ANSWER);
    let response = timeout(first, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(broken)?;
    let pause = options.between_bytes_timeout.unwrap_or(ANSWER);
    let response = response.map(|body| Timed::new(body, pause).boxed_unsync());
    let end = async move {
        match connection.await {
            Ok(Err(error)) => Err(broken(error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    };
    Ok((response, Box::new(end)))
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

async fn connect(guard: &Guard, tls: &Tls, endpoint: &Endpoint) -> Result<Box<dyn Stream>> {
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
                return match endpoint.tls {
                    true => Ok(Box::new(tls.wrap(&endpoint.host, stream).await?)),
                    false => Ok(Box::new(stream)),
                };
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
mod tests {
    use super::*;

    fn endpoint(uri: &str) -> Result<(String, u16, bool)> {
        Endpoint::of(&uri.parse().unwrap())
            .map(|endpoint| (endpoint.host, endpoint.port, endpoint.tls))
    }

    #[test]
    fn the_endpoint_comes_from_the_authority_only() {
        let is = |uri, host: &str, port, tls| {
            assert_eq!(
                endpoint(uri).unwrap(),
                (host.to_owned(), port, tls),
                "{uri}"
            );
        };
        is("http://a.example/x?y", "a.example", 80, false);
        is("https://a.example/", "a.example", 443, true);
        is("https://a.example:8443/", "a.example", 8443, true);
        is("http://[::1]:81/", "[::1]", 81, false);
        for uri in ["http://good.example@bad.example/", "http://a:0/", "/x"] {
            assert!(endpoint(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn only_the_path_is_sent() {
        let path = |uri: &str| only_path(&uri.parse().unwrap()).unwrap().to_string();
        assert_eq!(path("http://a/b?c=d"), "/b?c=d");
        assert_eq!(path("http://a"), "/");
    }
}
