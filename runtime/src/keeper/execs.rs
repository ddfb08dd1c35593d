//! Processes that were forked into running containers: who asked, what they said, how they ended.
//!
//! Driven by the keeper's event loop like the container table. An exec belongs to the connection that asked for it: its
//! streams end in the daemon, so when the daemon is gone nobody hears it, and it is killed with all that it started.
//! Invariant: an exec never outlives the daemon that asked for it; its container is not touched by its end.
//! Not here: streams (they are the daemon's), the container's own process.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::process::FIRST_EXEC;
use super::table::{kill, now_ns};
use crate::control::messages::{Answer, FromKeeper, Report};
use crate::control::receive;
use crate::id::ContainerId;
use crate::spec::{Cause, Exit};
use crate::wasm::run::TRAP_CODE;

/// Most bytes of reports taken from one exec.
const MAX_REPORT: usize = 32 * 1024;
/// Exit code of a process whose jail could not be entered.
const NOT_STARTED: i32 = 128;

/// One exec.
pub(super) struct Exec {
    /// The request that asked for it.
    pub(super) request: u64,
    /// Where.
    pub(super) container: ContainerId,
    pub(super) pidfd: OwnedFd,
    pub(super) report: Option<OwnedFd>,
    /// Files that kill its whole tree.
    pub(super) kill: Vec<PathBuf>,
    pub(super) heard: Heard,
}

/// What an exec has said so far.
#[derive(Default)]
pub(super) struct Heard {
    bytes: Vec<u8>,
    /// Descriptors that came along, in order.
    fds: Vec<OwnedFd>,
    /// It is about to execute a program; the end of its reports says that it did.
    executing: bool,
    /// It runs, and whoever asked was told.
    started: bool,
    cause: Option<Report>,
}

/// All execs of one keeper.
#[derive(Default)]
pub(super) struct Execs {
    slots: Vec<Option<Exec>>,
    news: Vec<(FromKeeper, Vec<OwnedFd>)>,
}

/// The two watched descriptors of an exec.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// It has ended.
    Process,
    /// It says something.
    Report,
}

/// A number that names one watched descriptor, from 0 up.
pub(super) fn token(slot: usize, what: What) -> u64 {
    slot as u64 * 2 + u64::from(what == What::Report)
}

impl Execs {
    /// Takes charge of one; returns its slot, whose descriptors are then to be watched.
    pub(super) fn begin(&mut self, exec: Exec) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(exec);
        slot
    }

    /// What is to be watched of the exec in `slot`.
    pub(super) fn watched(&self, slot: usize) -> Vec<(What, BorrowedFd<'_>)> {
        let Some(Some(exec)) = self.slots.get(slot) else {
            return Vec::new();
        };
        let report = exec.report.iter().map(|fd| (What::Report, fd.as_fd()));
        report
            .chain([(What::Process, exec.pidfd.as_fd())])
            .collect()
    }

    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// What was queued for the daemon.
    pub(super) fn take_news(&mut self) -> Vec<(FromKeeper, Vec<OwnedFd>)> {
        std::mem::take(&mut self.news)
    }

    /// Kills all: whoever asked is gone.
    pub(super) fn kill_all(&mut self) {
        self.news.clear();
        for exec in self.slots.iter().flatten() {
            for file in &exec.kill {
                let _ = std::fs::write(file, "1");
            }
            kill(exec.pidfd.as_fd());
        }
    }

    /// A watched descriptor is ready.
    pub(super) fn ready(&mut self, token: u64, poll: &OwnedFd) {
        let slot = (token / 2) as usize;
        let Some(mut exec) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        self.hear(&mut exec, slot, poll);
        let about_process = token.is_multiple_of(2);
        if about_process && self.ended(&mut exec, slot, poll) {
            return;
        }
        self.slots[slot] = Some(exec);
    }

    fn hear(&mut self, exec: &mut Exec, slot: usize, poll: &OwnedFd) {
        let is_over = listen(exec, poll);
        let mut runs = false;
        while let Some(end) = exec.heard.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = exec.heard.bytes.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Report::Ready) => runs = true,
                Ok(Report::Executing) => exec.heard.executing = true,
                Ok(Report::Moved) => follow(exec, slot, poll),
                Ok(report) => exec.heard.cause = Some(report),
                Err(_) => {}
            }
        }
        let heard = &mut exec.heard;
        runs |= is_over && heard.executing && heard.cause.is_none();
        if runs && !heard.started {
            heard.started = true;
            let (request, started_at) = (exec.request, now_ns());
            let answer = Answer::Started { started_at };
            let pidfd = exec.pidfd.try_clone().into_iter().collect();
            self.news
                .push((FromKeeper::Answer { request, answer }, pidfd));
        }
    }

    /// Whether it has ended; then whoever asked is told.
    fn ended(&mut self, exec: &mut Exec, slot: usize, poll: &OwnedFd) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(exec.pidfd.as_fd()), options) {
            Ok(Some(status)) => status,
            Ok(None) => return false,
            Err(_) => {
                // Not ours to wait for: nothing more will be heard of it.
                let _ = epoll::delete(poll, &exec.pidfd);
                return true;
            }
        };
        let _ = epoll::delete(poll, &exec.pidfd);
        self.hear(exec, slot, poll);
        let signal = status.terminating_signal();
        let code = status.exit_status().or(signal.map(|s| 128 + s));
        let code = code.unwrap_or(255);
        let (code, cause) = match exec.heard.cause.take() {
            Some(Report::Failed(text)) => (NOT_STARTED, Cause::StartFailed(text)),
            Some(Report::NotExecuted { code, text }) => (code, Cause::StartFailed(text)),
            Some(Report::Trap(text)) => (TRAP_CODE, Cause::Trap(text)),
            _ if !exec.heard.started => {
                let text = format!("the process ended with code {code} before it was ready");
                (NOT_STARTED, Cause::StartFailed(text))
            }
            _ => (code, Cause::Ended),
        };
        let request = exec.request;
        if let Cause::StartFailed(message) = cause {
            let answer = Answer::Failed {
                start_failed: true,
                message,
            };
            self.news
                .push((FromKeeper::Answer { request, answer }, Vec::new()));
            return true;
        }
        let exit = Exit {
            code,
            signal,
            finished_at: now_ns(),
            cause,
        };
        self.news
            .push((FromKeeper::ExecEnded { request, exit }, Vec::new()));
        true
    }

    /// Kills what runs in a container that has ended: with a pid namespace of its own it is gone already.
    pub(super) fn kill_in(&mut self, container: &ContainerId) {
        for exec in self.slots.iter().flatten() {
            if exec.container == *container {
                kill(exec.pidfd.as_fd());
            }
        }
    }
}

/// The exec goes on in another process, whose pidfd came along; the one before ends with this very message.
fn follow(exec: &mut Exec, slot: usize, poll: &OwnedFd) {
    use epoll::{EventData, EventFlags};
    if exec.heard.fds.is_empty() {
        return;
    }
    let next = exec.heard.fds.remove(0);
    let _ = epoll::delete(poll, &exec.pidfd);
    kill(exec.pidfd.as_fd());
    let _ = waitid(WaitId::PidFd(exec.pidfd.as_fd()), WaitIdOptions::EXITED);
    exec.pidfd = next;
    let data = EventData::new_u64(FIRST_EXEC + token(slot, What::Process));
    if epoll::add(poll, &exec.pidfd, data, EventFlags::IN).is_err() {
        kill(exec.pidfd.as_fd());
    }
}

/// Takes what was said; `true` once nothing can follow.
fn listen(exec: &mut Exec, poll: &OwnedFd) -> bool {
    let Some(socket) = &exec.report else {
        return true;
    };
    let mut chunk = [0; 4096];
    loop {
        match receive(socket.as_fd(), &mut chunk, &mut exec.heard.fds) {
            Ok(0) => break,
            Ok(count) => {
                let room = MAX_REPORT.saturating_sub(exec.heard.bytes.len());
                exec.heard
                    .bytes
                    .extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(_) => break,
        }
    }
    let _ = epoll::delete(poll, socket);
    exec.report = None;
    true
}
