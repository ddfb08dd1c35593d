//! The daemon's half of an attach: joining a client to a running container's own streams.
//!
//! Not here: copying between client and container.

use std::os::fd::OwnedFd;

use super::{Keeper, PROMPT, STREAMING_PROTOCOL, unexpected};
use crate::control::messages::{Answer, AttachStreams, Request};
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::ContainerId;

/// What a client is joined with.
pub struct AttachOptions {
    /// To which container.
    pub container: ContainerId,
    /// Its input goes to the container.
    pub stdin: bool,
    /// The container's input ends when this client's copy of it is closed.
    pub once: bool,
    /// The write end of the pipe that is to be fed standard output, or what a terminal shows.
    pub stdout: Option<OwnedFd>,
    /// The same of standard error.
    pub stderr: Option<OwnedFd>,
}

/// A client that was joined.
#[derive(Debug)]
pub struct Attached {
    /// The container has a terminal.
    pub tty: bool,
    /// Where its input goes: a pipe's write end or the controlling side of a terminal; neither blocks.
    pub input: Option<OwnedFd>,
}

impl Keeper {
    /// Joins a client to a running container.
    ///
    /// Errors: [`Kind::WrongPhase`] when it does not run, has no standard input or too many clients;
    /// [`Kind::Unsupported`] when its keeper is of a build before streaming; [`Kind::Gone`] or [`Kind::Deadline`].
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
