//! Clients that join a running container's standard streams.
//!
//! Invariant: the container's standard input stays with its keeper, so that any number of clients can come and go; only
//! the one client of an input that is to be used once takes it with it.
//! Not here: copying; the log thread feeds clients, the daemon takes what it feeds.

use std::io;
use std::os::fd::OwnedFd;

use super::{Containers, State};
use crate::control::messages::AttachStreams;
use crate::keeper::log::OutputStream;
use coracle_spec::id::ContainerId;

/// What a client joined.
pub(in crate::keeper) struct AttachedClient {
    /// The input is a terminal, whose controlling side it is.
    pub(in crate::keeper) tty: bool,
    /// Where its input goes, if it was asked for.
    pub(in crate::keeper) input: Option<OwnedFd>,
}

impl Containers {
    /// Joins a client to container `id`. `outputs` are pipes for what `streams` asks of standard output and error.
    ///
    /// Errors: the container does not run, has no standard input, or has too many clients.
    pub(in crate::keeper) fn attach(
        &mut self,
        id: &ContainerId,
        streams: AttachStreams,
        outputs: Vec<OwnedFd>,
    ) -> io::Result<AttachedClient> {
        let refuse = |text: String| io::Error::other(format!("container {id} {text}"));
        let Some(entry) = self.find(id)? else {
            return Err(refuse("is not kept here".into()));
        };
        if !matches!(entry.state, State::Running) {
            return Err(refuse("does not run".into()));
        }
        let wanted = [
            (streams.stdout, OutputStream::Out),
            (streams.stderr, OutputStream::Err),
        ];
        let wanted: Vec<OutputStream> = wanted.iter().filter(|w| w.0).map(|w| w.1).collect();
        if outputs.len() != wanted.len() {
            return Err(refuse(format!("got {} pipes to fill", outputs.len())));
        }
        let has_input = entry.terminal.is_some() || entry.stdin.is_some();
        if streams.stdin && !has_input {
            let text = "has no standard input, or its one client has come already";
            return Err(refuse(text.into()));
        }
        let log = entry.log.as_ref();
        let log = log.ok_or_else(|| refuse("has no output to join".into()))?;
        for (stream, pipe) in wanted.into_iter().zip(outputs) {
            if !log.attach(stream, pipe) {
                return Err(refuse("has as many attached clients as it can".into()));
            }
        }
        let input = match (&entry.terminal, streams.stdin) {
            (_, false) => None,
            (Some(control), true) => Some(control.try_clone()?),
            (None, true) if streams.once => entry.stdin.take(),
            (None, true) => entry.stdin.as_ref().map(OwnedFd::try_clone).transpose()?,
        };
        let tty = entry.terminal.is_some();
        Ok(AttachedClient { tty, input })
    }
}
