//! The WebSocket side: channels in messages, for exec, attach and the oldest port-forward; and tunnelled SPDY.
//!
//! ```text
//! http --Wire--> serve --channels--> remote::run | forward::carry
//!                     \--tunnel----> forward::serve_spdy
//! ```
//! Invariants: a message is at most [`MAX_MESSAGE`] bytes; output waits in an outbox as with SPDY; what is said for a
//! channel that nobody reads is dropped.
//! Not here: the handshake.

mod channels;
mod tunnel;

use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::forward::{self, Pair};
use super::link::{Connection, Wire};
use super::remote::{self, Opened};
use super::status::Form;
use super::{Forward, Program};
use channels::{Channels, Codec};
use tunnel::Tunnel;

/// Longest message taken, bytes. It is held whole, whoever is slow; Kubernetes' own clients send 32 KiB at most.
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes that are put together before they are written.
const WRITE: usize = 32 << 10;

const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const ERROR: usize = 3;
const RESIZE: usize = 4;

/// What a client and this server agreed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    codec: Codec,
    form: Form,
    /// The client ends a channel by a message.
    closes: bool,
}

/// Names of dialects for exec and attach, the newest first.
pub const REMOTE: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// Names of dialects of port-forward by channels.
pub const FORWARD: &[&str] = &["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Port-forward as SPDY inside of messages.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

impl Dialect {
    /// Of a name in [`REMOTE`] or [`FORWARD`].
    pub fn named(name: &str) -> Dialect {
        let codec = if name.contains("base64.") {
            Codec::Base64
        } else {
            Codec::Binary
        };
        let form = if name.starts_with('v') {
            Form::Json
        } else {
            Form::Text
        };
        Dialect {
            codec,
            form,
            closes: name.starts_with("v5."),
        }
    }
}

async fn socket(wire: Wire) -> WebSocketStream<Wire> {
    let config = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(WRITE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await
}

/// Serves exec or attach to its end; `idle` is how long nothing need be carried.
pub async fn serve_remote(connection: Connection, dialect: Dialect, program: Program) {
    let ends = program.ends();
    let mut channels = Channels::new(dialect.codec, dialect.closes);
    let stdin = ends.stdin.then(|| channels.read(STDIN));
    let sizes = ends.tty.then(|| channels.read(RESIZE));
    let Connection { wire, peer, idle } = connection;
    let (link, writers) = channels.start(socket(wire).await, peer, idle);
    let stdout = ends.stdout.then(|| writers.channel(STDOUT));
    let stderr = ends.stderr.then(|| writers.channel(STDERR));
    let error = writers.channel(ERROR);
    // Tells that the session is there: on the lowest channel that the client reads.
    stdout
        .as_ref()
        .or(stderr.as_ref())
        .unwrap_or(&error)
        .say(b"");
    let form = dialect.form;
    let opened = Opened {
        link,
        stdin,
        sizes,
        stdout,
        stderr,
        error,
        form,
        inputs: Vec::new(),
    };
    remote::run(opened, program).await;
}

/// Serves port-forward by channels: two a port, data and error, that begin with the port's number, lowest byte first.
pub async fn serve_forward(connection: Connection, dialect: Dialect, ports: Forward) {
    let mut channels = Channels::new(dialect.codec, dialect.closes);
    let numbered = ports.ports().iter().enumerate();
    let read: Vec<_> = numbered
        .map(|(at, port)| (2 * at, *port, channels.read(2 * at)))
        .collect();
    let Connection { wire, peer, idle } = connection;
    let (link, writers) = channels.start(socket(wire).await, peer, idle);
    let mut pairs = JoinSet::new();
    for (channel, port, intake) in read {
        let (data, error) = (writers.channel(channel), writers.channel(channel + 1));
        data.say(&port.to_le_bytes());
        error.say(&port.to_le_bytes());
        let pair = Pair {
            port,
            intake,
            data,
            error,
        };
        pairs.spawn(forward::carry(pair, ports.clone()));
    }
    tokio::select! {
        () = async { while pairs.join_next().await.is_some() {} } => link.finish().await,
        why = link.gone() => tracing::debug!(why, "a port-forward session ended"),
    }
}

/// Serves port-forward as SPDY inside of messages.
pub async fn serve_tunnel(connection: Connection, ports: Forward) {
    let Connection { wire, peer, idle } = connection;
    let wire: Wire = Box::new(Tunnel::new(socket(wire).await));
    forward::serve_spdy(Connection { wire, peer, idle }, ports).await;
}
