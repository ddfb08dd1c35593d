//! Attaches clients to a running container's standard streams.
//!
//! Called by the event loop. Invariant: the keeper keeps the container's standard input open, so that clients can come
//! and go; only the client of a `stdinOnce` input takes it away.
//! It must not copy bytes: the log thread writes to clients, the daemon reads.

use std::io;
use std::os::fd::OwnedFd;

use super::{Containers, Entry, State};
use crate::keeper::log::OutputStream;
use coracle_control::messages::AttachStreams;
use coracle_spec::id::ContainerId;

/// A client that was attached.
pub(in crate::keeper) struct AttachedClient {
    /// Whether the input is the controlling side of a terminal.
    pub(in crate::keeper) tty: bool,
    /// Where its input is written, if it attached to standard input.
    pub(in crate::keeper) input: Option<OwnedFd>,
}

impl Containers {
    /// Attaches a client to container `id`. `outputs` are pipes for those of standard output and error that `streams`
    /// has.
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
        Ok(AttachedClient {
            tty: entry.terminal.is_some(),
            input: input(entry, streams)?,
        })
    }
}

/// What a client that wants standard input writes to.
fn input(entry: &mut Entry, streams: AttachStreams) -> io::Result<Option<OwnedFd>> {
    Ok(match (&entry.terminal, streams.stdin) {
        (_, false) => None,
        (Some(control), true) => Some(control.try_clone()?),
        (None, true) if streams.once => entry.stdin.take(),
        (None, true) => entry.stdin.as_ref().map(OwnedFd::try_clone).transpose()?,
    })
}
