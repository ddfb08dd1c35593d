//! One container of a keeper: its phase, its descriptors, what its guest has reported.
//!
//! Used by [`super::Table`] only. Not here: what follows from a change.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::LogThread;
use crate::control::messages::Report;
use crate::id::ContainerId;
use crate::spec::Exit;

/// Most bytes of reports taken from one guest.
const MAX_REPORT: usize = 32 * 1024;

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
    /// A number that names it.
    pub(in crate::keeper) fn token(self) -> u64 {
        self.slot as u64 * 4 + self.what as u64
    }
}

/// Where a container is in its life.
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

/// A container as its keeper holds it.
pub(super) struct Entry {
    pub(super) id: ContainerId,
    pub(super) state: State,
    pub(super) pidfd: OwnedFd,
    pub(super) report: Option<OwnedFd>,
    pub(super) heard: Vec<u8>,
    pub(super) cause: Option<Report>,
    pub(super) log: Option<LogThread>,
    pub(super) reopening: Option<u64>,
    pub(super) started_at: i64,
    /// Held so that the guest's standard input stays open; attach takes it over.
    pub(super) _stdin: Option<OwnedFd>,
}

/// Nanoseconds since 1970.
pub(super) fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Takes what the guest has reported so far.
pub(super) fn listen(entry: &mut Entry, epoll: &OwnedFd) {
    let Some(pipe) = &entry.report else { return };
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                let room = MAX_REPORT.saturating_sub(entry.heard.len());
                entry.heard.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
    let _ = rustix::event::epoll::delete(epoll, pipe);
    entry.report = None;
}

/// SIGKILL.
pub(super) fn kill(pidfd: BorrowedFd<'_>) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}

/// Borrows a descriptor of a log thread.
pub(super) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the descriptor belongs to a LogThread that is kept for as long as it is watched.
    #[allow(unsafe_code, reason = "epoll wants a borrowed descriptor")]
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}
