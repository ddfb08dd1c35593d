//! One container of a keeper: its phase, its descriptors, what its guest has reported.
//!
//! Used by [`super::Table`] only. Not here: what follows from a change.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::LogThread;
use crate::control;
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
    /// Descriptors that came with reports, in order.
    pub(super) heard_fds: Vec<OwnedFd>,
    /// The guest is about to execute a program; the end of its reports says that it did.
    pub(super) executing: bool,
    pub(super) log: Option<LogThread>,
    /// The log file of a guest that has yet to send its terminal.
    pub(super) log_file: Option<File>,
    /// The controlling side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) reopening: Option<u64>,
    pub(super) started_at: i64,
    /// Held so that the guest's standard input stays open; attach takes it over.
    pub(super) _stdin: Option<OwnedFd>,
}

/// Nanoseconds since 1970.
pub(in crate::keeper) fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Takes what the guest has reported so far; `true` when nothing follows.
pub(super) fn listen(entry: &mut Entry, epoll: &OwnedFd) -> bool {
    let Some(socket) = &entry.report else {
        return false;
    };
    let mut chunk = [0; 4096];
    loop {
        match control::receive(socket.as_fd(), &mut chunk, &mut entry.heard_fds) {
            Ok(0) => break,
            Ok(count) => {
                let room = MAX_REPORT.saturating_sub(entry.heard.len());
                entry.heard.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
            // A reset says the same as an end.
            Err(_) => break,
        }
    }
    let _ = rustix::event::epoll::delete(epoll, socket);
    entry.report = None;
    true
}

/// The guest goes on in another process, whose pidfd came along: watches that, and reaps the one before, which ends
/// with this very message.
pub(super) fn follow(entry: &mut Entry, slot: usize, epoll: &OwnedFd) {
    if entry.heard_fds.is_empty() {
        return;
    }
    let next = entry.heard_fds.remove(0);
    let _ = rustix::event::epoll::delete(epoll, &entry.pidfd);
    // It has nothing left to do; somebody in its pid namespace may have stopped it.
    kill(entry.pidfd.as_fd());
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(entry.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    entry.pidfd = next;
    let what = What::Process;
    if !watch(epoll, Watch { slot, what }, entry.pidfd.as_fd()) {
        kill(entry.pidfd.as_fd());
    }
}

/// The guest has made its terminal: keeps its controlling side and logs what comes out of it.
pub(super) fn take_terminal(entry: &mut Entry, slot: usize, epoll: &OwnedFd) {
    if entry.heard_fds.is_empty() {
        return;
    }
    let terminal = entry.heard_fds.remove(0);
    let file = entry.log_file.take();
    let log = terminal
        .try_clone()
        .and_then(|out| LogThread::start(out, None, file));
    match log {
        Ok(log) => {
            let what = What::Log;
            watch(epoll, Watch { slot, what }, borrow(log.done_fd()));
            entry.log = Some(log);
        }
        Err(e) => {
            let text = format!("start the log of the container's terminal: {e}");
            entry.cause = Some(Report::Failed(text));
            kill(entry.pidfd.as_fd());
        }
    }
    entry.terminal = Some(terminal);
}

fn watch(epoll: &OwnedFd, watch: Watch, fd: BorrowedFd<'_>) -> bool {
    use rustix::event::epoll::{EventData, EventFlags, add};
    let data = EventData::new_u64(super::FIRST_WATCH + watch.token());
    add(epoll, fd, data, EventFlags::IN).is_ok()
}

/// SIGKILL.
pub(in crate::keeper) fn kill(pidfd: BorrowedFd<'_>) {
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
