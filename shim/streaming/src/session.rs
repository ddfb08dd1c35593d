//! What a URL opens: the streams that a client gets, and the work that they are joined to.
//!
//! Made by whoever offers a session ([`super::Server::offer`]); run by `remote` and `forward` once its client is there.
//! Invariant: a session's future that is dropped gives up the session: whatever ran only for it is killed.
//! Not here: frames, tokens, pipes, and what is at the other end of the streams.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What a URL opens.
#[derive(Debug)]
pub enum Session {
    /// A program that begins with the session.
    Exec(Program),
    /// A program that runs already.
    Attach(Program),
    /// Connections to ports.
    Forward(Forward),
}

/// Which streams a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// It sends sizes.
    pub tty: bool,
    /// It sends input.
    pub stdin: bool,
    /// It takes output.
    pub stdout: bool,
    /// It takes errors.
    pub stderr: bool,
}

/// Starts the work of a session with the client's streams.
type Run = Box<dyn FnOnce(Streams) -> Job<i32> + Send>;

/// A program that a client's streams are joined to.
pub struct Program {
    action: &'static str,
    ends: Ends,
    run: Run,
}

impl Program {
    /// `run` ends with the program's exit code, 128 + signal for a signal, once its output was taken. `action` is what is
    /// being done, for the client to read when it fails: `executing command in container`.
    pub fn new(
        action: &'static str,
        ends: Ends,
        run: impl FnOnce(Streams) -> Job<i32> + Send + 'static,
    ) -> Program {
        // A terminal has no error stream of its own.
        let stderr = ends.stderr && !ends.tty;
        Program {
            action,
            ends: Ends { stderr, ..ends },
            run: Box::new(run),
        }
    }

    /// Which streams its client gets.
    pub(super) fn ends(&self) -> Ends {
        self.ends
    }

    /// What is being done.
    pub(super) fn action(&self) -> &'static str {
        self.action
    }

    /// Joins the client's streams to it until it ends.
    pub(super) fn run(self, streams: Streams) -> Job<i32> {
        (self.run)(streams)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("action", &self.action)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// Connects to a TCP port.
type Connect = Arc<dyn Fn(u16) -> Job<TcpStream> + Send + Sync>;

/// Ports that a client may connect to.
#[derive(Clone)]
pub struct Forward {
    target: String,
    ports: Vec<u16>,
    connect: Connect,
}

impl Forward {
    /// `connect` connects to a TCP port of `target`, a name for the client and the log to read. `ports` are the ones that a
    /// client of the oldest WebSocket kind names by position; others name theirs themselves.
    pub fn new(
        target: impl Into<String>,
        ports: Vec<u16>,
        connect: impl Fn(u16) -> Job<TcpStream> + Send + Sync + 'static,
    ) -> Forward {
        Forward {
            target: target.into(),
            ports,
            connect: Arc::new(connect),
        }
    }

    /// Whose ports these are.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// The ports by position.
    pub(super) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Connects to one port. Errors: it is not reachable, or nothing listens.
    pub(super) fn connect(&self, port: u16) -> Job<TcpStream> {
        (self.connect)(port)
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("target", &self.target)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
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

/// Work that ends with its session: dropping it gives it up. Its error is shown to the client with all its causes.
pub type Job<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send>>;
