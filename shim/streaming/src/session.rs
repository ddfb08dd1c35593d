//! A session: the streams that a client gets, and the future that they are connected to.
//!
//! Made by the caller of [`super::Server::offer`]; run by `remote` and `forward` once the client has connected.
//! Invariant: dropping a session's future ends the session and kills what ran only for it.
//! Must not know: frames, tokens, pipes, the other end of the streams.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::counters::Counted;
use super::shares::{Owner, Share, Shares};

/// A session that a URL opens.
#[derive(Debug)]
pub enum Session {
    /// A program that the session starts.
    Exec(Program),
    /// A program that already runs.
    Attach(Program),
    /// Connections to ports.
    Forward(Forward),
}

impl Session {
    /// The first part of its URL.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Session::Exec(_) => "exec",
            Session::Attach(_) => "attach",
            Session::Forward(_) => "portforward",
        }
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> &Owner {
        match self {
            Session::Exec(program) | Session::Attach(program) => &program.owner,
            Session::Forward(ports) => &ports.owner,
        }
    }
}

/// Which streams a client gets, as in CRI's ExecRequest and AttachRequest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The client sends terminal sizes.
    pub tty: bool,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client receives standard output.
    pub stdout: bool,
    /// The client receives standard error.
    pub stderr: bool,
}

/// Starts a session's program with the client's streams.
type Run = Box<dyn FnOnce(Streams) -> SessionFuture<i32> + Send>;

/// A program that a client's streams are connected to.
pub struct Program {
    action: &'static str,
    options: StreamOptions,
    owner: Owner,
    run: Run,
}

impl Program {
    /// `run` ends with the program's exit code, 128 + signal for a signal, once its output was sent. `action` describes
    /// what is being done, for the error text of the client: `executing command in container`.
    pub fn new(
        action: &'static str,
        options: StreamOptions,
        run: impl FnOnce(Streams) -> SessionFuture<i32> + Send + 'static,
    ) -> Program {
        // A terminal has no error stream of its own.
        let stderr = options.stderr && !options.tty;
        Program {
            action,
            options: StreamOptions { stderr, ..options },
            owner: Owner::default(),
            run: Box::new(run),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn of(self, owner: Owner) -> Program {
        Program { owner, ..self }
    }

    /// The same; how it ends is the result of `counted`.
    pub(super) fn counted(self, counted: &Counted) -> Program {
        let (result, run) = (counted.result(), self.run);
        let run = move |streams| -> SessionFuture<i32> {
            let running = run(streams);
            Box::pin(async move {
                let ended = running.await;
                let _ = result.set(if ended.is_ok() { "ok" } else { "failed" });
                ended
            })
        };
        Program {
            run: Box::new(run),
            ..self
        }
    }

    /// The streams that its client gets.
    pub(super) fn options(&self) -> StreamOptions {
        self.options
    }

    /// The action, for error texts.
    pub(super) fn action(&self) -> &'static str {
        self.action
    }

    /// Connects the client's streams to it until it ends.
    pub(super) fn run(self, streams: Streams) -> SessionFuture<i32> {
        (self.run)(streams)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("action", &self.action)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Connects to a TCP port.
type Connect = Arc<dyn Fn(u16) -> SessionFuture<TcpStream> + Send + Sync>;

/// Ports that a client may connect to.
#[derive(Clone)]
pub struct Forward {
    target: String,
    ports: Vec<u16>,
    owner: Owner,
    shares: Option<Shares>,
    connect: Connect,
}

impl Forward {
    /// `connect` connects to a TCP port of `target`, a name for the client and the log. `ports` are those that a client
    /// of the oldest WebSocket protocol names by position; other clients send port numbers.
    pub fn new(
        target: impl Into<String>,
        ports: Vec<u16>,
        connect: impl Fn(u16) -> SessionFuture<TcpStream> + Send + Sync + 'static,
    ) -> Forward {
        Forward {
            target: target.into(),
            ports,
            owner: Owner::default(),
            shares: None,
            connect: Arc::new(connect),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn of(self, owner: Owner) -> Forward {
        Forward { owner, ..self }
    }

    /// Each connection takes one of `shares`.
    pub(super) fn sharing(self, shares: Shares) -> Forward {
        let shares = Some(shares);
        Forward { shares, ..self }
    }

    /// A share for one connection. Errors: the owner has its part of them.
    pub(super) fn share(&self) -> Result<Option<Share>, &'static str> {
        let Some(shares) = &self.shares else {
            return Ok(None);
        };
        let text = "too many forwarded connections of this pod or its namespace are open";
        shares.take(&self.owner).map(Some).ok_or(text)
    }

    /// The name of the target.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// The ports by position.
    pub(super) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Connects to one port. Errors: it is unreachable, or nothing listens.
    pub(super) fn connect(&self, port: u16) -> SessionFuture<TcpStream> {
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

/// The client's side of an exec or attach: exactly the streams of its [`StreamOptions`].
pub struct Streams {
    /// The client's input; it ends when the client half-closes.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Output to the client; `shutdown` ends the stream.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard error to the client.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The latest size of the client's terminal; `None` until it sent one.
    pub size: watch::Receiver<Option<Size>>,
}

/// The future of a session; dropping it ends its work. The client gets its error with all causes.
pub type SessionFuture<T> =
    Pin<Box<dyn Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send>>;
