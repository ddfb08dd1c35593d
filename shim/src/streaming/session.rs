//! What the wire and the containers' side of a streaming session say to each other.
//!
//! Invariant: a session's future that is dropped gives up the session: whatever ran only for it is killed.
//! Not here: frames, tokens, pipes.

use std::future::Future;
use std::pin::Pin;

use coracle_runtime::id::{ContainerId, PodId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::lifecycle::Error;

/// What CRI asked a URL for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A program in a container.
    Exec(ExecWish),
    /// The standard streams of a container's own program.
    Attach(AttachWish),
    /// Ports of a pod.
    Forward(ForwardWish),
}

/// Source: cri-api v0.37 api.proto: ExecRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecWish {
    /// Where.
    pub container: ContainerId,
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// A terminal is its input, output and error.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is.
    pub stdout: bool,
    /// Its standard error is; never with `tty`.
    pub stderr: bool,
}

/// Source: cri-api v0.37 api.proto: AttachRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachWish {
    /// To which.
    pub container: ContainerId,
    /// The client takes the container for one with a terminal.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is.
    pub stdout: bool,
    /// Its standard error is; never with `tty`.
    pub stderr: bool,
}

/// Source: cri-api v0.37 api.proto: PortForwardRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardWish {
    /// Of which.
    pub pod: PodId,
    /// The ports that a client of the oldest WebSocket kind names by position; others name theirs themselves.
    pub ports: Vec<u16>,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The client's side of an exec or attach. Each end that was asked for is there, no other.
pub struct Streams {
    /// What the client types; its end is the client's half-close.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// What it is shown; `shutdown` tells it that no more comes.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The same of errors.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The newest size of its terminal; none until it has said one.
    pub size: watch::Receiver<Option<Size>>,
}

/// Work that ends with its session.
pub type Job<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// The containers' side: dropping a job gives it up.
pub trait Backend: Send + Sync + 'static {
    /// Runs a program until it ends and its output was taken; its exit code, 128 + signal for a signal.
    ///
    /// Errors: it was not started, or its keeper was lost.
    fn exec(&self, wish: ExecWish, streams: Streams) -> Job<i32>;

    /// Joins a container's own streams until it ends, or the client closes all it can send and take.
    ///
    /// Errors: the container does not run, or has no standard input though it is asked for.
    fn attach(&self, wish: AttachWish, streams: Streams) -> Job<()>;

    /// Connects to a TCP port of a pod at its loopback, IPv4 first.
    ///
    /// Errors: the pod is not ready, or nothing listens.
    fn connect(&self, pod: PodId, port: u16) -> Job<TcpStream>;
}
