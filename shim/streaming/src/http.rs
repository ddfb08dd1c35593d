//! The request that opens a session: its token, its protocol, and the upgrade.
//!
//! ```text
//! server --request--> answer --redeem--> tokens
//!                       |--404, 400, 403, 405, 503
//!                       +--101--> spdy | websocket session, in a task of its own
//! ```
//! Invariants: only the token decides what a client gets; the first request uses a token up, even if it fails; a refused
//! request is the last one of its connection; where
//! origins are configured, pages of other origins are refused.
//! Must not know: frames.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    CONNECTION, HOST, HeaderName, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
};
use ::http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Session;
use super::budget::Budget;
use super::connection::{Peer, Upgraded};
use super::limits::Limits;
use super::receive::{self, RecvBudget};
use super::serve::{Protocol, serve};
use super::shares::Shares;
use super::tokens::Tokens;
use super::websocket::{self, Subprotocol};

/// Most sessions at a time, and most of one target.
const SESSIONS: (usize, usize) = (2048, 256);
/// Most forwarded connections at a time, and most of one target.
const CONNECTIONS: (usize, usize) = (8192, 1024);

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

const SPDY: &str = "SPDY/3.1";
/// Protocols of exec and attach over SPDY, with their versions.
const SPDY_REMOTE: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
const SPDY_FORWARD: &[&str] = &["portforward.k8s.io"];

type Reply = Response<Full<Bytes>>;

/// State that all requests share.
pub struct ServerState {
    tokens: Arc<Tokens>,
    limits: Arc<Limits>,
    sessions: Shares,
    connections: Shares,
    memory: Budget,
}

impl ServerState {
    /// No session is open.
    pub fn new(tokens: Arc<Tokens>, limits: Arc<Limits>) -> ServerState {
        ServerState {
            tokens,
            limits,
            sessions: Shares::new(SESSIONS.0, SESSIONS.1),
            connections: Shares::new(CONNECTIONS.0, CONNECTIONS.1),
            memory: receive::memory(),
        }
    }
}

/// Answers one request.
pub async fn answer(
    state: Arc<ServerState>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    Ok(negotiate(&state, peer, request).unwrap_or_else(Refusal::into_reply))
}

fn negotiate(
    state: &Arc<ServerState>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "a session is opened by GET or POST",
        ));
    }
    let session = redeem(&state.tokens, request.uri().path());
    let session = session.ok_or_else(|| {
        refusal(
            StatusCode::NOT_FOUND,
            "no such session; its URL is good once, for a minute",
        )
    })?;
    let headers = request.headers();
    let (protocol, reply) = if is_websocket(headers) {
        check_origin(headers, &state.limits.origins())?;
        websocket_reply(headers, &session)?
    } else {
        spdy_reply(headers, &session)?
    };
    begin(state, request, peer, (protocol, session))?;
    Ok(reply)
}

/// Has the session served once its connection is upgraded. Errors: its owner has its part of all sessions.
fn begin(
    state: &ServerState,
    request: Request<Incoming>,
    peer: Peer,
    (protocol, session): (Protocol, Session),
) -> Result<(), Refusal> {
    let share = state.sessions.take(session.owner()).ok_or_else(|| {
        let text = "too many sessions of this pod or its namespace are open";
        refusal(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    let budget = Arc::new(RecvBudget::new(&state.memory, &session.owner().tenant));
    let session = match session {
        Session::Forward(ports) => Session::Forward(ports.sharing(state.connections.clone())),
        other => other,
    };
    let made = Made {
        peer,
        idle: state.limits.idle(),
        budget,
    };
    tokio::spawn(async move {
        upgrade(request, made, protocol, session).await;
        drop(share);
    });
    Ok(())
}

/// What a connection has beside its bytes.
struct Made {
    peer: Peer,
    idle: Duration,
    budget: Arc<RecvBudget>,
}

/// Waits for the upgrade, then serves the session on the connection.
async fn upgrade(request: Request<Incoming>, made: Made, protocol: Protocol, session: Session) {
    match hyper::upgrade::on(request).await {
        Ok(upgraded) => {
            let io = Box::new(TokioIo::new(upgraded));
            let Made { peer, idle, budget } = made;
            let upgraded = Upgraded {
                io,
                peer,
                idle,
                budget,
            };
            serve(upgraded, protocol, session).await;
        }
        Err(error) => {
            tracing::debug!(%error, "a streaming client closed its connection before its session began")
        }
    }
}

/// The session that the URL's token was issued for; `None` if the URL names another kind of session.
fn redeem(tokens: &Tokens, path: &str) -> Option<Session> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    tokens
        .redeem(token)
        .filter(|session| session.name() == kind)
}

/// Why a session is refused.
struct Refusal {
    status: StatusCode,
    reason: String,
    /// The protocols that the server accepts.
    accepts: &'static [&'static str],
}

impl Refusal {
    fn into_reply(self) -> Reply {
        let mut reply = Response::new(Full::new(Bytes::from(self.reason + "\n")));
        *reply.status_mut() = self.status;
        // Whoever showed no token has no more to say on this connection.
        let close = ::http::HeaderValue::from_static("close");
        reply.headers_mut().insert(CONNECTION, close);
        for one in self.accepts {
            reply
                .headers_mut()
                .append(ACCEPTED_PROTOCOLS, ::http::HeaderValue::from_static(one));
        }
        reply
    }
}

fn refusal(status: StatusCode, reason: impl Into<String>) -> Refusal {
    Refusal {
        status,
        reason: reason.into(),
        accepts: &[],
    }
}

fn bad(reason: impl Into<String>) -> Refusal {
    refusal(StatusCode::BAD_REQUEST, reason)
}

/// The client offers none of the known protocols.
fn no_common(offered: &[&str], accepts: &'static [&'static str]) -> Refusal {
    let offered: String = offered
        .join(", ")
        .chars()
        .filter(|c| !c.is_control())
        .take(256)
        .collect();
    let reason = format!(
        "the client speaks {offered}, this server {}",
        accepts.join(", ")
    );
    Refusal {
        status: StatusCode::FORBIDDEN,
        reason,
        accepts,
    }
}

/// A header's values, each split at commas.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect()
}

fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    values(headers, name)
        .iter()
        .any(|value| value.eq_ignore_ascii_case(wanted))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    has(headers, &CONNECTION, "upgrade") && has(headers, &UPGRADE, "websocket")
}

/// Where the operator configured origins, a page of another origin may not open a session, even with a valid token.
/// Without configured origins the token alone decides: kubelet and API server pass on the `Origin` of their client.
fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), Refusal> {
    let Some(origin) = headers.get(ORIGIN).filter(|_| !allowed.is_empty()) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let page = origin.split_once("://").map_or("", |(_, page)| page);
    if !host.is_empty() && page.eq_ignore_ascii_case(host) {
        return Ok(());
    }
    if allowed
        .iter()
        .any(|one| one == "*" || one.eq_ignore_ascii_case(origin))
    {
        return Ok(());
    }
    let shown: String = origin
        .chars()
        .filter(|c| !c.is_control())
        .take(256)
        .collect();
    let reason =
        format!("origin {shown:?} is not this host's; streaming.allowed_origins lists others");
    Err(refusal(StatusCode::FORBIDDEN, reason))
}

fn switching(upgrade: &'static str) -> ::http::response::Builder {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, upgrade)
}

fn built(reply: ::http::response::Builder) -> Result<Reply, Refusal> {
    reply
        .body(Full::default())
        .map_err(|_| refusal(StatusCode::INTERNAL_SERVER_ERROR, "no answer could be made"))
}

fn spdy_reply(headers: &HeaderMap, session: &Session) -> Result<(Protocol, Reply), Refusal> {
    if !has(headers, &CONNECTION, "upgrade") || !has(headers, &UPGRADE, SPDY) {
        return Err(bad("a session needs an upgrade to SPDY/3.1 or websocket"));
    }
    let offered = values(headers, &STREAM_PROTOCOL);
    if offered.is_empty() {
        return Err(bad(
            "the header X-Stream-Protocol-Version names no protocol",
        ));
    }
    let known = if matches!(session, Session::Forward(_)) {
        SPDY_FORWARD
    } else {
        SPDY_REMOTE
    };
    let chosen = offered
        .iter()
        .find_map(|name| known.iter().position(|one| one == name));
    let at = chosen.ok_or_else(|| no_common(&offered, known))?;
    let reply = built(switching(SPDY).header(STREAM_PROTOCOL, known[at]))?;
    Ok((Protocol::Spdy(4 - at as u8), reply))
}

fn websocket_reply(headers: &HeaderMap, session: &Session) -> Result<(Protocol, Reply), Refusal> {
    if !has(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return Err(bad("the WebSocket version is not 13"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| bad("the header Sec-WebSocket-Key is missing"))?;
    let mut offered = values(headers, &SEC_WEBSOCKET_PROTOCOL);
    let named = !offered.is_empty();
    if !named {
        offered.push("");
    }
    let forward = matches!(session, Session::Forward(_));
    let known = if forward {
        websocket::FORWARD
    } else {
        websocket::REMOTE
    };
    let chosen = offered.iter().find_map(|name| match *name {
        websocket::TUNNEL if forward => Some((Protocol::Tunnel, websocket::TUNNEL)),
        name => known
            .iter()
            .find(|one| **one == name)
            .map(|one| (Protocol::Channels(Subprotocol::named(one)), *one)),
    });
    let (protocol, name) = chosen.ok_or_else(|| no_common(&offered, known))?;
    let mut reply =
        switching("websocket").header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    if named {
        reply = reply.header(SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok((protocol, built(reply)?))
}
