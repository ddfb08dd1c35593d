//! One container of a keeper: its state, its descriptors, its reports.
//!
//! Used by [`super::Containers`] only, which decides what follows from a change.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use super::LogThread;
use crate::keeper::reports::{self, Reports, kill};
use crate::keeper::tokens::FIRST_WATCH;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

/// One watched descriptor of one container.
#[derive(Clone, Copy)]
pub(in crate::keeper) struct Watch {
    pub(super) slot: usize,
    pub(super) what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Process,
    Report,
    Log,
}

impl Watch {
    /// Its epoll token.
    pub(in crate::keeper) fn token(self) -> u64 {
        self.slot as u64 * 4 + self.what as u64
    }
}

/// The state of a container.
pub(super) enum State {
    Starting {
        request: Option<u64>,
        until: Instant,
    },
    Running,
    Draining {
        exit: Exit,
        until: Instant,
        request: Option<u64>,
    },
    Exited(Exit),
}

impl State {
    /// Whether the start has neither succeeded nor been recorded as failed yet.
    pub(super) fn is_starting(&self) -> bool {
        match self {
            State::Starting { .. } => true,
            State::Draining { exit, .. } => matches!(exit.cause, Cause::StartFailed(_)),
            State::Running | State::Exited(_) => false,
        }
    }
}

/// A container as its keeper holds it.
pub(super) struct Entry {
    pub(super) id: ContainerId,
    pub(super) state: State,
    pub(super) pidfd: OwnedFd,
    /// It has ended and cannot be reaped yet.
    pub(super) is_held: bool,
    pub(super) reports: Reports,
    pub(super) log: Option<LogThread>,
    /// The log file, until the process has sent its terminal.
    pub(super) log_file: Option<File>,
    /// The controlling side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) reopening: Option<u64>,
    pub(super) started_at: i64,
    /// Its standard input, kept open; attached clients get copies.
    pub(super) stdin: Option<OwnedFd>,
}

/// The process has opened its terminal: keeps the controlling side and logs its output.
pub(super) fn take_terminal(entry: &mut Entry, control: OwnedFd, slot: usize, epoll: &OwnedFd) {
    let file = entry.log_file.take();
    // Non-blocking from here on, by either number: a client must not wait for a program that does not read.
    let log = control
        .try_clone()
        .and_then(|out| LogThread::start(out, None, file));
    match log {
        Ok(log) => {
            let watch = Watch {
                slot,
                what: What::Log,
            };
            let token = FIRST_WATCH + watch.token();
            reports::watch(epoll, token, borrow(log.done_fd()));
            entry.log = Some(log);
        }
        Err(e) => {
            let text = format!("start the log of the container's terminal: {e}");
            entry.reports.set_failure(text);
            kill(entry.pidfd.as_fd());
        }
    }
    entry.terminal = Some(control);
}

/// Borrows a descriptor of a log thread.
pub(super) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the descriptor belongs to a LogThread that is kept for as long as it is watched.
    #[allow(unsafe_code, reason = "epoll wants a borrowed descriptor")]
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}
