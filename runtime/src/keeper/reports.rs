//! Reports of a container process or an exec while it starts, and its exit code and message once it has ended.
//!
//! Used by the containers and the execs: both follow a process through its jail by one stream of reports.
//! Invariants: at most [`MAX_REPORT`] bytes of it are read in all, so that no process holds its keeper by reports without
//! end; an unknown report is ignored.
//! It must not know the states of containers, or who gets the events.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use coracle_control::frame::receive;
use coracle_control::messages::Report;
use coracle_spec::{Cause, MAX_CAUSE_BYTES, MAX_MESSAGE_BYTES};
use coracle_wasm::run::TRAP_CODE;

/// Most bytes of reports that are read from one process. One that sends more is not ours any more.
const MAX_REPORT: usize = 32 * 1024;
/// Most descriptors that are kept until a report names them.
const MAX_FDS: usize = 4;
/// Exit code of a process that never ran its program.
const NOT_STARTED: i32 = 128;

/// The reports of one process.
pub(super) struct Reports {
    socket: Option<OwnedFd>,
    /// The process has ended: what it has sent is all that comes, whoever else still holds its end of the socket.
    has_ended: bool,
    /// Read, and not yet a whole line.
    bytes: Vec<u8>,
    /// How many bytes were read in all.
    read: usize,
    /// Received descriptors, in order.
    fds: Vec<OwnedFd>,
    /// It is about to execute a program; if the stream ends without another report, it did.
    executing: bool,
    cause: Option<Report>,
    message: String,
}

/// The meaning of a report.
pub(super) enum ReportEvent {
    /// The payload runs.
    Runs,
    /// The process continues in another one, with this pidfd.
    Moved(OwnedFd),
    /// The controlling side of its terminal.
    Terminal(OwnedFd),
}

impl Reports {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            has_ended: false,
            bytes: Vec::new(),
            read: 0,
            fds: Vec::new(),
            executing: false,
            cause: None,
            message: String::new(),
        }
    }

    /// The descriptor to watch, until the stream has ended.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// The process has ended. The one before it, from which it moved, may be alive for a moment longer, with the socket.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
    }

    /// Reads and returns new reports.
    pub(super) fn read_events(&mut self, poll: &OwnedFd) -> Vec<ReportEvent> {
        let is_over = self.fill(poll);
        let mut events = Vec::new();
        let end = self.bytes.iter().rposition(|b| *b == b'\n');
        let rest = self.bytes.split_off(end.map_or(0, |end| end + 1));
        let lines = std::mem::replace(&mut self.bytes, rest);
        for line in lines.split(|b| *b == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Report::Ready) => events.push(ReportEvent::Runs),
                Ok(Report::Executing) => self.executing = true,
                Ok(Report::Moved) => events.extend(self.next_fd().map(ReportEvent::Moved)),
                Ok(Report::Terminal) => events.extend(self.next_fd().map(ReportEvent::Terminal)),
                Ok(Report::Message(text)) => self.message = text,
                Ok(report) => self.cause = Some(report),
                Err(_) => {}
            }
        }
        if is_over && self.executing && self.cause.is_none() {
            events.push(ReportEvent::Runs);
        }
        events
    }

    fn next_fd(&mut self) -> Option<OwnedFd> {
        (!self.fds.is_empty()).then(|| self.fds.remove(0))
    }

    /// Reads all available bytes; `true` once the stream has ended, or was closed because there is no end to it.
    fn fill(&mut self, poll: &OwnedFd) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        let mut chunk = [0; 4096];
        while self.read < MAX_REPORT {
            match receive(socket.as_fd(), &mut chunk, &mut self.fds) {
                Ok(0) => break,
                Ok(count) => {
                    self.read += count;
                    self.bytes.extend_from_slice(&chunk[..count]);
                    self.fds.truncate(MAX_FDS);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.has_ended => return false,
                // A reset means the same as an end.
                Err(_) => break,
            }
        }
        let _ = epoll::delete(poll, socket);
        self.socket = None;
        true
    }

    /// Records why it did not run, when the keeper knows it.
    pub(super) fn set_failure(&mut self, text: String) {
        self.cause = Some(Report::Failed(text));
    }

    /// The message that the process sent about its end, bounded.
    pub(super) fn message(&mut self) -> String {
        let mut text = std::mem::take(&mut self.message);
        text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
        text
    }

    /// Exit code and cause of an ended process; `ran`: whether its program ran.
    ///
    /// A process that ran never gets [`Cause::StartFailed`], whatever it reported: its start was answered with success,
    /// and the daemon waits for its exit.
    pub(super) fn exit_status(&mut self, status: &WaitIdStatus, ran: bool) -> (i32, Cause) {
        let signalled = status.terminating_signal().map(|signal| 128 + signal);
        let code = status.exit_status().or(signalled).unwrap_or(255);
        let (code, mut cause) = match (self.cause.take(), ran) {
            (Some(Report::Trap(text)), true) => (TRAP_CODE, Cause::Trap(text)),
            (Some(Report::Failed(text) | Report::NotExecuted { text, .. }), true) => {
                self.message = text;
                (code, Cause::Ended)
            }
            (_, true) => (code, Cause::Ended),
            (Some(Report::NotExecuted { code, text }), false) => (code, Cause::StartFailed(text)),
            (Some(Report::Failed(text) | Report::Trap(text)), false) => {
                (NOT_STARTED, Cause::StartFailed(text))
            }
            (_, false) => {
                let text = format!("the process ended with code {code} before it was ready");
                (NOT_STARTED, Cause::StartFailed(text))
            }
        };
        // The text comes from a tenant's program and goes into records and messages, so it is cut.
        cause.shorten(MAX_CAUSE_BYTES);
        (code, cause)
    }
}

/// What became of a process whose pidfd was ready.
pub(super) enum Ended {
    /// It has ended, and is reaped.
    With(WaitIdStatus),
    /// It has ended, and only whoever traces it may know of its end: [`reap`] is to be called again when a child has ended, which
    /// the kernel says once more when the tracer lets it go.
    Held,
    /// It was reaped elsewhere.
    Lost,
    /// It has not ended.
    No,
}

/// Reaps a process that has ended, and watches it no more: the pidfd of one that cannot be reaped, as another process of a shared
/// pid namespace traces it, would be ready for ever.
pub(super) fn reap(pidfd: BorrowedFd<'_>, poll: &OwnedFd) -> Ended {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    // In this order: it may end in between.
    let has_ended = has_ended(pidfd);
    let ended = match waitid(WaitId::PidFd(pidfd), options) {
        Ok(Some(status)) => Ended::With(status),
        Ok(None) if !has_ended => return Ended::No,
        Ok(None) => Ended::Held,
        Err(_) => Ended::Lost,
    };
    let _ = epoll::delete(poll, pidfd);
    ended
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(
        rustix::event::poll(&mut ready, Some(&Timespec::default())),
        Ok(1)
    )
}

/// The process of `pidfd` continues as `next`, which is watched as `token` from now on. The old process is done, but
/// another one in its pid namespace may have stopped it, so it is killed. If that one traces it, too, it cannot be reaped yet: it
/// is a child that nobody watches then.
pub(super) fn follow(pidfd: &mut OwnedFd, next: OwnedFd, poll: &OwnedFd, token: u64) {
    let _ = epoll::delete(poll, &*pidfd);
    kill(pidfd.as_fd());
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), options);
    *pidfd = next;
    if !watch(poll, token, pidfd.as_fd()) {
        kill(pidfd.as_fd());
    }
}

/// Watches a descriptor for input; `false` if the kernel refuses.
pub(super) fn watch(poll: &OwnedFd, token: u64, fd: BorrowedFd<'_>) -> bool {
    epoll::add(poll, fd, EventData::new_u64(token), EventFlags::IN).is_ok()
}

/// SIGKILL.
pub(super) fn kill(pidfd: BorrowedFd<'_>) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
