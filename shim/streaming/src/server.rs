//! The streaming server: listens, issues URLs, and serves the clients that use them.
//!
//! Called by: the shim's `serve` (bind), the CRI services (offer). Calls: [`super::http`] for each connection.
//! Invariants: a connection has ten seconds to send its first bytes and ten more for TLS handshake and one request, in
//! bounded memory; the number of such connections is limited, and a new one never waits for idle ones
//! ([`super::pending`]); the server ends when its handle is dropped.
//! Must not know: the meaning of requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::connection::{BoxedIo, Peer};
use super::http::{self, ServerState};
use super::limits::Limits;
use super::pending::{PendingConnection, PendingConnections};
use super::tls::{Identity, Tls};
use super::tokens::{Refused, Tokens};
use super::{Error, Session};

/// How long a connection's first bytes may take, and how long its handshake and request may take from then on.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after accept(2) failed: the first one, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// What the kernel holds of a connection in each direction; it takes it twice. Bytes.
const KERNEL_BUFFER: usize = 256 << 10;
/// Largest head of a request, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// A client that does not answer the kernel's probes for about a minute and a half is considered gone.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 3);

/// The settings of the operator; see `assets/config.toml`, `[streaming]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to listen on; not a wildcard. Port 0 is any.
    pub address: SocketAddr,
    /// Certificate and key; without them the server speaks plain HTTP.
    pub identity: Option<Identity>,
    /// What may change while the server runs.
    pub limits: Arc<Limits>,
}

/// The running server.
pub struct Server {
    tokens: Arc<Tokens>,
    base: String,
    _accepting: JoinSet<()>,
}

impl Server {
    /// Listens, and serves the offered sessions. Errors: the address or the certificate cannot be used.
    pub async fn bind(settings: Settings) -> Result<Server, Error> {
        let Settings {
            address,
            identity,
            limits,
        } = settings;
        let tls = identity.map(Tls::open).transpose()?.map(Arc::new);
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr().map_err(failed)?);
        let tokens = Arc::new(Tokens::default());
        let state = ServerState::new(Arc::clone(&tokens), limits);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, tls, Arc::new(state)));
        Ok(Server {
            tokens,
            base,
            _accepting: accepting,
        })
    }

    /// A URL that opens the session, once, within a minute. Errors: too many sessions wait for their clients.
    pub fn offer(&self, session: Session) -> Result<String, Refused> {
        let kind = session.name();
        let token = self.tokens.issue(session)?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<Tls>>, state: Arc<ServerState>) {
    let pending = PendingConnections::default();
    let mut backoff = BACKOFF.0;
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                backoff = BACKOFF.0;
                let entry = pending.admit(from.ip());
                let (tls, state) = (tls.clone(), Arc::clone(&state));
                tokio::spawn(serve_connection(socket, entry, tls, state));
            }
            Err(error) => {
                // Most likely a lack of file descriptors: other connections must end first.
                if backoff == BACKOFF.0 {
                    tracing::warn!(%error, "no streaming client can be accepted; trying again until one can");
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Serves a connection up to its upgrade; closes it at its time limit or when it is evicted.
async fn serve_connection(
    socket: TcpStream,
    mut entry: PendingConnection,
    tls: Option<Arc<Tls>>,
    state: Arc<ServerState>,
) {
    let first_bytes = async {
        // The error shows again when the bytes are read.
        let _ = socket.readable().await;
    };
    tokio::select! {
        () = entry.evicted() => return,
        () = tokio::time::sleep(REQUEST_TIMEOUT) => return,
        () = first_bytes => entry.has_sent(),
    }
    tokio::select! {
        () = entry.evicted() => {}
        () = tokio::time::sleep(REQUEST_TIMEOUT) => {}
        () = serve_request(socket, tls, state) => {}
    }
}

async fn serve_request(socket: TcpStream, tls: Option<Arc<Tls>>, state: Arc<ServerState>) {
    let Ok(peer) = set_socket_options(&socket) else {
        return;
    };
    let io: BoxedIo = match tls {
        None => Box::new(socket),
        Some(tls) => match tls.accept(socket).await {
            Ok(secured) => Box::new(secured),
            Err(error) => {
                return tracing::debug!(%error, "a streaming client's TLS handshake failed");
            }
        },
    };
    let service =
        service_fn(move |request| http::answer(Arc::clone(&state), peer.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    // This future ends as soon as the reply to an upgrade is sent.
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a streaming client sent no valid request");
    }
}

/// Sends keystrokes at once (TCP_NODELAY), detects dead clients (keepalive), and bounds what the kernel holds for slow ones.
fn set_socket_options(socket: &TcpStream) -> std::io::Result<Peer> {
    let (after, every, times) = KEEPALIVE;
    socket.set_nodelay(true)?;
    sockopt::set_socket_send_buffer_size(socket, KERNEL_BUFFER)?;
    sockopt::set_socket_recv_buffer_size(socket, KERNEL_BUFFER)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, after)?;
    sockopt::set_tcp_keepintvl(socket, every)?;
    sockopt::set_tcp_keepcnt(socket, times)?;
    Ok(Peer::new(rustix::io::fcntl_dupfd_cloexec(socket, 0)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::Forward;

    #[tokio::test]
    async fn many_connections_without_a_token_hold_no_place_and_keep_no_session_out() {
        let settings = Settings {
            address: "127.0.0.1:0".parse().unwrap(),
            identity: None,
            limits: Arc::new(Limits::new(Duration::from_secs(60), &[])),
        };
        let server = Server::bind(settings).await.unwrap();
        let forward = Forward::new("a pod", vec![80], |_| {
            Box::pin(async { Err("nothing listens".into()) })
        });
        let url = server.offer(Session::Forward(forward)).unwrap();
        let (address, path) = url["http://".len()..].split_once('/').unwrap();
        let mut hostile = Vec::new();
        for _ in 0..400 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = "GET /exec/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nHost: a\r\n\r\n";
            client.write_all(request.as_bytes()).await.unwrap();
            hostile.push(client);
        }
        let mut answer = String::new();
        let last = hostile.last_mut().unwrap();
        let closed =
            tokio::time::timeout(Duration::from_secs(120), last.read_to_string(&mut answer));
        closed.await.expect("it holds its place").unwrap();
        // One whose time is up gets no answer.
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
    }
}
