//! What a guest or an exec says of itself while it comes to be, and what that means once it has ended.
//!
//! Used by the container table and by the execs alike: both follow a process through its jail by one stream of reports.
//! Invariant: at most [`MAX_REPORT`] bytes are ever held of it; a report that is not understood is passed over.
//! Not here: phases, who is told.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::control::messages::Report;
use crate::control::receive;
use coracle_spec::{Cause, MAX_CAUSE_BYTES};
use coracle_wasm::run::TRAP_CODE;

/// Most bytes of reports taken from one process.
const MAX_REPORT: usize = 32 * 1024;
/// Exit code of what never ran.
const NOT_STARTED: i32 = 128;

/// The reports of one process.
pub(super) struct Reports {
    socket: Option<OwnedFd>,
    bytes: Vec<u8>,
    /// Descriptors that came along, in order.
    fds: Vec<OwnedFd>,
    /// It is about to execute a program; the end of its reports says that it did.
    executing: bool,
    cause: Option<Report>,
}

/// What follows from a report.
pub(super) enum ReportEvent {
    /// The payload runs.
    Runs,
    /// The process goes on in another one, whose pidfd this is.
    Moved(OwnedFd),
    /// The controlling side of its terminal.
    Terminal(OwnedFd),
}

impl Reports {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            bytes: Vec::new(),
            fds: Vec::new(),
            executing: false,
            cause: None,
        }
    }

    /// What is to be watched, until nothing more can follow.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// Takes what was said since the last time.
    pub(super) fn read_events(&mut self, poll: &OwnedFd) -> Vec<ReportEvent> {
        let is_over = self.fill(poll);
        let mut events = Vec::new();
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Report::Ready) => events.push(ReportEvent::Runs),
                Ok(Report::Executing) => self.executing = true,
                Ok(Report::Moved) => events.extend(self.next_fd().map(ReportEvent::Moved)),
                Ok(Report::Terminal) => events.extend(self.next_fd().map(ReportEvent::Terminal)),
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

    /// Reads all there is; `true` once nothing can follow.
    fn fill(&mut self, poll: &OwnedFd) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        let mut chunk = [0; 4096];
        loop {
            match receive(socket.as_fd(), &mut chunk, &mut self.fds) {
                Ok(0) => break,
                Ok(count) => {
                    let room = MAX_REPORT.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..count.min(room)]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                // A reset says the same as an end.
                Err(_) => break,
            }
        }
        let _ = epoll::delete(poll, socket);
        self.socket = None;
        true
    }

    /// Why it did not come to run, told by whoever keeps it.
    pub(super) fn set_failure(&mut self, text: String) {
        self.cause = Some(Report::Failed(text));
    }

    /// Exit code and cause of an ended process that had come to `run`, or had not.
    pub(super) fn exit_status(&mut self, status: &WaitIdStatus, ran: bool) -> (i32, Cause) {
        let signalled = status.terminating_signal().map(|signal| 128 + signal);
        let code = status.exit_status().or(signalled).unwrap_or(255);
        let (code, mut cause) = match self.cause.take() {
            Some(Report::Failed(text)) => (NOT_STARTED, Cause::StartFailed(text)),
            Some(Report::NotExecuted { code, text }) => (code, Cause::StartFailed(text)),
            Some(Report::Trap(text)) => (TRAP_CODE, Cause::Trap(text)),
            _ if !ran => {
                let text = format!("the process ended with code {code} before it was ready");
                (NOT_STARTED, Cause::StartFailed(text))
            }
            _ => (code, Cause::Ended),
        };
        // What a tenant's program says of itself goes into records and messages.
        cause.shorten(MAX_CAUSE_BYTES);
        (code, cause)
    }
}

/// The process of `pidfd` goes on as `next`, which is watched as `token` from now on. The one before has nothing left to
/// do; somebody in its pid namespace may have stopped it, so it is killed before it is waited for.
pub(super) fn follow(pidfd: &mut OwnedFd, next: OwnedFd, poll: &OwnedFd, token: u64) {
    let _ = epoll::delete(poll, &*pidfd);
    kill(pidfd.as_fd());
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
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
