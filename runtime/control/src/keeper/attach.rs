//! The daemon's side of an attach: it attaches a client to a running container's standard streams.
//!
//! Called by the daemon's streaming. It must not know how bytes are copied between client and container.

use std::os::fd::OwnedFd;

use super::{Keeper, PROMPT, STREAMING_PROTOCOL, unexpected};
use crate::messages::{Answer, AttachStreams, Request};
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::ContainerId;

/// Options of [`Keeper::attach`].
pub struct AttachOptions {
    /// Which container.
    pub container: ContainerId,
    /// Whether the client writes to the container's standard input.
    pub stdin: bool,
    /// Whether the container's standard input ends when this client closes it.
    pub once: bool,
    /// The write end of a pipe that gets standard output, or the terminal's output.
    pub stdout: Option<OwnedFd>,
    /// The same for standard error.
    pub stderr: Option<OwnedFd>,
}

/// A client that was attached.
#[derive(Debug)]
pub struct Attached {
    /// Whether the container has a terminal.
    pub tty: bool,
    /// Where its input is written: a pipe's write end or the controlling side of a terminal, both non-blocking.
    pub input: Option<OwnedFd>,
}

impl Keeper {
    /// Attaches a client to a running container.
    ///
    /// Errors: [`Kind::WrongPhase`] when it does not run, has no standard input or too many clients;
    /// [`Kind::Unsupported`] when its keeper is of an older build without attach; [`Kind::Gone`] or [`Kind::Deadline`]
    /// when the keeper did not answer.
    pub async fn attach(&self, options: AttachOptions) -> Result<Attached> {
        self.require_protocol(STREAMING_PROTOCOL)?;
        let streams = AttachStreams {
            stdin: options.stdin,
            stdout: options.stdout.is_some(),
            stderr: options.stderr.is_some(),
            once: options.once,
        };
        let body = Request::Attach {
            container: options.container,
            streams,
        };
        let pipes = options.stdout.into_iter().chain(options.stderr).collect();
        match self.request(body, pipes, PROMPT).await? {
            (Answer::Attached { tty }, mut fds) => Ok(Attached {
                tty,
                input: fds.pop(),
            }),
            (Answer::Failed { message, .. }, _) => Err(Error::new(Kind::WrongPhase, message)),
            (other, _) => Err(unexpected(&other)),
        }
    }
}
