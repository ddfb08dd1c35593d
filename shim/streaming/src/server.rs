//! The streaming server: listens, hands out URLs, and takes the clients that come for them.
//!
//! Called by: the shim's `serve` (bind), the CRI services (offer). Calls: [`super::http`] for each connection.
//! Invariants: a connection has ten seconds to say something and as many to bring its request, TLS handshake and all, in
//! bounded memory; few are in that state at a time, and a new one never waits for silent ones ([`super::arrivals`]); the
//! server ends when its handle is dropped.
//! Not here: what requests mean.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::arrivals::{Arrival, Arrivals};
use super::http::{self, Site};
use super::link::{Peer, Wire};
use super::tls::{Identity, Tls};
use super::tokens::{Refused, Tokens};
use super::{Error, Session};

/// How long a connection may say nothing, and how long its handshake and request may take from then on.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long nothing is accepted after a failure, first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Largest head of a request, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// A client that does not answer the kernel's probes for about a minute and a half is gone.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 3);

/// What an operator decides; see `assets/config.toml`, `[streaming]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen; no wildcard. Port 0 is any.
    pub address: SocketAddr,
    /// Certificate and key; without them HTTP is spoken.
    pub identity: Option<Identity>,
    /// A session that carries nothing for so long ends.
    pub idle: Duration,
    /// Origins that may come beside this host's own; `*` is any. Empty: the origin is not looked at.
    pub origins: Vec<String>,
}

/// The running server.
pub struct Server {
    tokens: Arc<Tokens>,
    base: String,
    _accepting: JoinSet<()>,
}

impl Server {
    /// Listens, and serves the sessions that are offered. Errors: the address or the certificate cannot be used.
    pub async fn bind(settings: Settings) -> Result<Server, Error> {
        let Settings {
            address,
            identity,
            idle,
            origins,
        } = settings;
        let tls = identity.map(Tls::open).transpose()?.map(Arc::new);
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr().map_err(failed)?);
        let tokens = Arc::new(Tokens::default());
        let site = Site::new(Arc::clone(&tokens), idle, origins);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, tls, Arc::new(site)));
        Ok(Server {
            tokens,
            base,
            _accepting: accepting,
        })
    }

    /// A URL that opens the session, once, within a minute. Errors: too many wait for their clients.
    pub fn offer(&self, session: Session) -> Result<String, Refused> {
        let kind = http::name(&session);
        let token = self.tokens.issue(session)?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<Tls>>, site: Arc<Site>) {
    let arrivals = Arrivals::default();
    let mut pause = BACKOFF.0;
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                pause = BACKOFF.0;
                let arrival = arrivals.admit(from.ip());
                let (tls, site) = (tls.clone(), Arc::clone(&site));
                tokio::spawn(attend(socket, arrival, tls, site));
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                if pause == BACKOFF.0 {
                    tracing::warn!(%error, "no streaming client can be accepted; trying again until one can");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Takes a connection to its session, or lets it go when its time is over or its place is needed.
async fn attend(socket: TcpStream, mut arrival: Arrival, tls: Option<Arc<Tls>>, site: Arc<Site>) {
    let spoken = async {
        // Its first bytes; an error is found again by whoever reads them.
        let _ = socket.readable().await;
    };
    tokio::select! {
        () = arrival.evicted() => return,
        () = tokio::time::sleep(ARRIVAL) => return,
        () = spoken => arrival.has_spoken(),
    }
    tokio::select! {
        () = arrival.evicted() => {}
        () = tokio::time::sleep(ARRIVAL) => {}
        () = arrive(socket, tls, site) => {}
    }
}

async fn arrive(socket: TcpStream, tls: Option<Arc<Tls>>, site: Arc<Site>) {
    let Ok(peer) = tune(&socket) else {
        return;
    };
    let wire: Wire = match tls {
        None => Box::new(socket),
        Some(tls) => match tls.accept(socket).await {
            Ok(secured) => Box::new(secured),
            Err(error) => {
                return tracing::debug!(%error, "a streaming client's TLS handshake failed");
            }
        },
    };
    let service = service_fn(move |request| http::answer(Arc::clone(&site), peer.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    // An upgraded connection leaves this future as soon as its answer is out.
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a streaming client made no good request");
    }
}

/// Makes keystrokes leave at once and dead clients known.
fn tune(socket: &TcpStream) -> std::io::Result<Peer> {
    let (after, every, times) = KEEPALIVE;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, after)?;
    sockopt::set_tcp_keepintvl(socket, every)?;
    sockopt::set_tcp_keepcnt(socket, times)?;
    Ok(Peer::new(rustix::io::fcntl_dupfd_cloexec(socket, 0)?))
}
