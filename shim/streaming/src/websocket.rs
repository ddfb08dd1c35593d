//! WebSocket sessions: channels in messages, for exec, attach and the oldest port-forward; and SPDY in a tunnel.
//!
//! ```text
//! http --BoxedIo--> serve --channels--> remote::run | forward::run_pair
//!                     \--tunnel----> forward::serve_spdy
//! ```
//! Invariants: a message is at most [`MAX_MESSAGE`] bytes, and counts as received while it is read and taken apart; output is queued as for SPDY; messages for a channel without
//! a reader are dropped.
//! Must not know: the handshake.

mod channels;
mod metered;
mod tunnel;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::connection::{BoxedIo, Upgraded};
use super::forward::{self, Pair};
use super::receive::RecvBudget;
use super::remote::{self, ClientStreams};
use super::status::StatusFormat;
use super::{Forward, Program};
use channels::{Channels, Codec};
use metered::Metered;
use tunnel::Tunnel;

/// Longest accepted message, bytes. It is held as a whole; Kubernetes' own clients send 32 KiB at most.
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes that are collected before they are written.
const WRITE: usize = 32 << 10;

const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const ERROR: usize = 3;
const RESIZE: usize = 4;

/// A negotiated subprotocol (Sec-WebSocket-Protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subprotocol {
    codec: Codec,
    format: StatusFormat,
    /// The client can end a channel with a message.
    closes: bool,
}

/// Subprotocols of exec and attach, the newest first.
pub const REMOTE: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// Subprotocols of port-forward with channels.
pub const FORWARD: &[&str] = &["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Port-forward as SPDY inside WebSocket messages.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

impl Subprotocol {
    /// One of [`REMOTE`] or [`FORWARD`].
    pub fn named(name: &str) -> Subprotocol {
        let codec = if name.contains("base64.") {
            Codec::Base64
        } else {
            Codec::Binary
        };
        let format = if name.starts_with('v') {
            StatusFormat::Json
        } else {
            StatusFormat::Text
        };
        Subprotocol {
            codec,
            format,
            closes: name.starts_with("v5."),
        }
    }
}

async fn socket(io: BoxedIo, budget: &Arc<RecvBudget>) -> WebSocketStream<BoxedIo> {
    let io: BoxedIo = Box::new(Metered::new(io, Arc::clone(budget)));
    let config = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(WRITE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves exec or attach to its end; `upgraded.idle` is how long the connection may be idle.
pub async fn serve_remote(upgraded: Upgraded, subprotocol: Subprotocol, program: Program) {
    let options = program.options();
    let Upgraded {
        io,
        peer,
        idle,
        budget,
    } = upgraded;
    let mut channels = Channels::new(subprotocol.codec, subprotocol.closes, &budget);
    let stdin = options.stdin.then(|| channels.read(STDIN));
    let sizes = options.tty.then(|| channels.read(RESIZE));
    let socket = socket(io, &budget).await;
    let (connection, writers) = channels.start(socket, peer, idle);
    let stdout = options.stdout.then(|| writers.channel(STDOUT));
    let stderr = options.stderr.then(|| writers.channel(STDERR));
    let error = writers.channel(ERROR);
    // An empty message on the lowest channel that the client reads tells it that the session is open.
    stdout
        .as_ref()
        .or(stderr.as_ref())
        .unwrap_or(&error)
        .send_now(b"");
    let format = subprotocol.format;
    let client = ClientStreams {
        connection,
        stdin,
        sizes,
        stdout,
        stderr,
        error,
        format,
        inputs: Vec::new(),
    };
    remote::run(client, program).await;
}

/// Serves port-forward with channels: two for each port, data and error, that begin with the port's number, lowest byte
/// first.
pub async fn serve_forward(upgraded: Upgraded, subprotocol: Subprotocol, ports: Forward) {
    let Upgraded {
        io,
        peer,
        idle,
        budget,
    } = upgraded;
    let mut channels = Channels::new(subprotocol.codec, subprotocol.closes, &budget);
    let numbered = ports.ports().iter().enumerate();
    let read: Vec<_> = numbered
        .map(|(at, port)| (2 * at, *port, channels.read(2 * at)))
        .collect();
    let socket = socket(io, &budget).await;
    let (connection, writers) = channels.start(socket, peer, idle);
    let mut pairs = JoinSet::new();
    for (channel, port, recv_stream) in read {
        let (data, error) = (writers.channel(channel), writers.channel(channel + 1));
        data.send_now(&port.to_le_bytes());
        error.send_now(&port.to_le_bytes());
        let pair = Pair {
            port,
            recv_stream,
            data,
            error,
        };
        pairs.spawn(forward::run_pair(pair, ports.clone()));
    }
    tokio::select! {
        () = async { while pairs.join_next().await.is_some() {} } => connection.finish().await,
        reason = connection.closed() => tracing::debug!(reason, "a port-forward session ended"),
    }
}

/// Serves port-forward with SPDY in messages.
pub async fn serve_tunnel(upgraded: Upgraded, ports: Forward) {
    let Upgraded { io, budget, .. } = upgraded;
    let tunnel = Tunnel::new(socket(io, &budget).await, Arc::clone(&budget));
    let tunnelled = Upgraded {
        io: Box::new(tunnel),
        peer: upgraded.peer,
        idle: upgraded.idle,
        budget,
    };
    forward::serve_spdy(tunnelled, ports).await;
}
