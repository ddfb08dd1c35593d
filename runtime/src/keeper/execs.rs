//! A keeper's execs: which requests started them, their reports, their exits.
//!
//! Called by the keeper's event loop, like the containers. An exec belongs to the connection that requested it: its
//! streams end in the daemon, so when the daemon is gone it is killed with all its processes.
//! Invariants: an exec never outlives the daemon that requested it; its end does not affect its container.
//! It must not know about streams, which the daemon holds, or about the container's own process.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::reports::{self, Ended, ReportEvent, Reports, kill};
use super::tokens::FIRST_EXEC;
use coracle_cgroup::KillList;
use coracle_control::exits::now_ns;
use coracle_control::messages::{Answer, FromKeeper};
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

/// Exit code of a process that was reaped elsewhere.
const UNKNOWN: i32 = 255;

/// One exec.
pub(super) struct Exec {
    /// The request that started it.
    request: u64,
    /// Its container.
    container: ContainerId,
    pidfd: OwnedFd,
    /// It has ended and cannot be reaped yet.
    is_held: bool,
    reports: Reports,
    tree: Tree,
    /// Whether it runs and the request was answered.
    started: bool,
    /// The controlling side of its terminal, until the answer takes it.
    terminal: Option<OwnedFd>,
}

impl Exec {
    /// An exec that was just forked.
    pub(super) fn new(
        request: u64,
        container: ContainerId,
        (pidfd, report): (OwnedFd, OwnedFd),
        tree: Tree,
    ) -> Self {
        Self {
            request,
            container,
            pidfd,
            is_held: false,
            reports: Reports::new(report),
            tree,
            started: false,
            terminal: None,
        }
    }
}

/// How to kill all processes of an exec.
pub(super) struct Tree {
    /// Files to write `1` to.
    pub(super) files: Vec<PathBuf>,
    /// Where its processes are listed, if there is no such file.
    pub(super) list: Option<KillList>,
}

impl Exec {
    /// Kills it with all its processes. Its first process is killed even if the rest fails.
    fn kill_whole(&self) {
        for file in &self.tree.files {
            let _ = std::fs::write(file, "1");
        }
        // It forks only after it entered its cgroup, and no process leaves that.
        kill(self.pidfd.as_fd());
        if let Some(list) = &self.tree.list {
            let _ = list.kill();
        }
    }
}

/// All execs of one keeper.
#[derive(Default)]
pub(super) struct Execs {
    slots: Vec<Option<Exec>>,
    events: Vec<(FromKeeper, Vec<OwnedFd>)>,
}

/// The two watched descriptors of an exec.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// It has ended.
    Process,
    /// It has sent a report.
    Report,
}

/// The number of one watched descriptor, from 0 up.
pub(super) fn token(slot: usize, what: What) -> u64 {
    slot as u64 * 2 + u64::from(what == What::Report)
}

impl Execs {
    /// Adds an exec and returns its slot; the caller then watches its descriptors.
    pub(super) fn add(&mut self, exec: Exec) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(exec);
        slot
    }

    /// The descriptors to watch of the exec in `slot`.
    pub(super) fn watched(&self, slot: usize) -> Vec<(What, BorrowedFd<'_>)> {
        let Some(Some(exec)) = self.slots.get(slot) else {
            return Vec::new();
        };
        let report = exec.reports.fd().map(|fd| (What::Report, fd));
        let process = (What::Process, exec.pidfd.as_fd());
        report.into_iter().chain([process]).collect()
    }

    /// Kills and forgets the exec in `slot`, because it cannot be watched.
    pub(super) fn abandon(&mut self, slot: usize) {
        if let Some(exec) = self.slots.get_mut(slot).and_then(Option::take) {
            exec.kill_whole();
            // If it is not reaped now, it is a child that nobody watches.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = waitid(WaitId::PidFd(exec.pidfd.as_fd()), options);
        }
    }

    /// The processes of all execs.
    pub(super) fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().flatten().map(|exec| exec.pidfd.as_fd())
    }

    /// Whether some exec is starting.
    pub(super) fn is_starting(&self) -> bool {
        self.slots.iter().flatten().any(|exec| !exec.started)
    }

    /// Whether there is no exec.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes the events that were queued for the daemon.
    pub(super) fn take_events(&mut self) -> Vec<(FromKeeper, Vec<OwnedFd>)> {
        std::mem::take(&mut self.events)
    }

    /// Kills all, because the daemon is gone.
    pub(super) fn kill_all(&mut self) {
        self.events.clear();
        for exec in self.slots.iter().flatten() {
            exec.kill_whole();
        }
    }

    /// A watched descriptor is ready.
    pub(super) fn ready(&mut self, token: u64, poll: &OwnedFd) {
        let slot = (token / 2) as usize;
        let Some(mut exec) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        self.handle_reports(&mut exec, slot, poll);
        let about_process = token.is_multiple_of(2);
        if about_process && self.ended(&mut exec, slot, poll) {
            return;
        }
        self.slots[slot] = Some(exec);
    }

    /// Some child has ended, or is let go by whoever traced it: looks again at those that had ended already.
    pub(super) fn child_ended(&mut self, poll: &OwnedFd) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|exec| exec.is_held) {
                self.ready(token(slot, What::Process), poll);
            }
        }
    }

    fn handle_reports(&mut self, exec: &mut Exec, slot: usize, poll: &OwnedFd) {
        let mut runs = false;
        for event in exec.reports.read_events(poll) {
            match event {
                ReportEvent::Runs => runs = true,
                ReportEvent::Terminal(terminal) => exec.terminal = Some(terminal),
                ReportEvent::Moved(next) => {
                    let token = FIRST_EXEC + token(slot, What::Process);
                    reports::follow(&mut exec.pidfd, next, poll, token);
                }
            }
        }
        if runs && !exec.started {
            exec.started = true;
            let (request, started_at) = (exec.request, now_ns());
            let answer = Answer::Started { started_at };
            let pidfd = exec.pidfd.try_clone().into_iter();
            let fds = pidfd.chain(exec.terminal.take()).collect();
            self.events
                .push((FromKeeper::Answer { request, answer }, fds));
        }
    }

    /// Whether it has ended; if so, the event is queued.
    fn ended(&mut self, exec: &mut Exec, slot: usize, poll: &OwnedFd) -> bool {
        let ended = reports::reap(exec.pidfd.as_fd(), poll);
        exec.is_held = matches!(ended, Ended::Held);
        let status = match ended {
            Ended::No | Ended::Held => return false,
            Ended::With(status) => Some(status),
            Ended::Lost => None,
        };
        exec.reports.end();
        self.handle_reports(exec, slot, poll);
        let (code, cause) = match &status {
            Some(status) => exec.reports.exit_status(status, exec.started),
            // It cannot be waited for, so its exit code is unknown, but the daemon gets an event.
            None if exec.started => (UNKNOWN, Cause::Unknown),
            None => {
                let text = "the process was lost before it was ready".to_owned();
                (UNKNOWN, Cause::StartFailed(text))
            }
        };
        let request = exec.request;
        let events = match cause {
            Cause::StartFailed(message) => {
                let answer = Answer::Failed {
                    start_failed: true,
                    message,
                };
                FromKeeper::Answer { request, answer }
            }
            cause => {
                let exit = Exit {
                    code,
                    signal: status.and_then(|status| status.terminating_signal()),
                    finished_at: now_ns(),
                    cause,
                    message: String::new(),
                };
                FromKeeper::ExecEnded { request, exit }
            }
        };
        self.events.push((events, Vec::new()));
        true
    }

    /// Kills the execs of a container that has ended. Those in the container's own pid namespace are gone already.
    pub(super) fn kill_in(&mut self, container: &ContainerId) {
        for exec in self.slots.iter().flatten() {
            if exec.container == *container {
                kill(exec.pidfd.as_fd());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
