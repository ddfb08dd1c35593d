//! Answers [`Request::AwaitStart`](coracle_control::messages::Request::AwaitStart): the result of a start that an
//! earlier daemon requested.
//!
//! Called by the event loop. Invariant: every request is answered exactly once, here or when the start ends.
//! It must not know the connection.

use std::io;
use std::os::fd::OwnedFd;

use super::{Containers, State};
use coracle_control::messages::{Answer, FromKeeper};
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

impl Containers {
    /// Answers `request` with the result of a container's start: now if it has ended, else when it ends.
    ///
    /// Errors: there is no such container.
    pub(in crate::keeper) fn await_start(
        &mut self,
        id: &ContainerId,
        request: u64,
    ) -> io::Result<Option<(FromKeeper, Vec<OwnedFd>)>> {
        let Some(entry) = self.find(id)? else {
            return Ok(None);
        };
        let is_starting = entry.state.is_starting();
        match &mut entry.state {
            State::Starting {
                request: requester, ..
            }
            | State::Draining {
                request: requester, ..
            } if is_starting => {
                *requester = Some(request);
                return Ok(None);
            }
            State::Exited(Exit {
                cause: Cause::StartFailed(message),
                ..
            }) => {
                let answer = Answer::Failed {
                    start_failed: true,
                    message: message.clone(),
                };
                return Ok(Some((FromKeeper::Answer { request, answer }, Vec::new())));
            }
            _ => {}
        }
        // It runs, or has run.
        let started_at = entry.started_at;
        let answer = Answer::Started { started_at };
        let pidfd = entry.pidfd.try_clone()?;
        Ok(Some((FromKeeper::Answer { request, answer }, vec![pidfd])))
    }
}
