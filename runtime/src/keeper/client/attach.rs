//! The daemon's half of an attach: joining a client to a running container's own streams.
//!
//! Not here: copying between client and container.

use std::os::fd::OwnedFd;

use super::{Keeper, PROMPT, STREAMING_PROTOCOL, unexpected};
use crate::control::messages::{Answer, Ask, Joining};
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::ContainerId;

/// What a client is joined with.
pub struct AttachOrder {
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
    pub async fn attach(&self, order: AttachOrder) -> Result<Attached> {
        self.speaks(STREAMING_PROTOCOL)?;
        let joining = Joining {
            stdin: order.stdin,
            stdout: order.stdout.is_some(),
            stderr: order.stderr.is_some(),
            once: order.once,
        };
        let ask = Ask::Attach {
            container: order.container,
            joining,
        };
        let pipes = order.stdout.into_iter().chain(order.stderr).collect();
        match self.ask(ask, pipes, PROMPT).await? {
            (Answer::Joined { tty }, mut fds) => Ok(Attached {
                tty,
                input: fds.pop(),
            }),
            (Answer::Failed { message, .. }, _) => Err(Error::new(Kind::WrongPhase, message)),
            (other, _) => Err(unexpected(&other)),
        }
    }
}
