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

use super::exits::now_ns;
use super::reports::{self, ReportEvent, Reports, kill};
use super::tokens::FIRST_EXEC;
use crate::control::messages::{Answer, FromKeeper};
use coracle_cgroup::KillList;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

/// Exit code of a process that somebody else has waited for.
const UNKNOWN: i32 = 255;

/// One exec.
pub(super) struct Exec {
    /// The request that asked for it.
    request: u64,
    /// Where.
    container: ContainerId,
    pidfd: OwnedFd,
    reports: Reports,
    tree: Tree,
    /// It runs, and whoever asked was told.
    started: bool,
    /// The controlling side of its terminal, for whoever asked.
    terminal: Option<OwnedFd>,
}

impl Exec {
    /// One that was just forked.
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
            reports: Reports::new(report),
            tree,
            started: false,
            terminal: None,
        }
    }
}

/// How everything is killed that an exec has started.
pub(super) struct Tree {
    /// Files to which `1` is written.
    pub(super) files: Vec<PathBuf>,
    /// Where its processes are listed, if there is no such file.
    pub(super) list: Option<KillList>,
}

impl Exec {
    /// Kills it with all that it started. Whatever fails, its first process is killed.
    fn kill_whole(&self) {
        for file in &self.tree.files {
            let _ = std::fs::write(file, "1");
        }
        // Before it enters its cgroup it has started nothing; afterwards nothing leaves that.
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
    /// It says something.
    Report,
}

/// A number that names one watched descriptor, from 0 up.
pub(super) fn token(slot: usize, what: What) -> u64 {
    slot as u64 * 2 + u64::from(what == What::Report)
}

impl Execs {
    /// Takes charge of one; returns its slot, whose descriptors are then to be watched.
    pub(super) fn add(&mut self, exec: Exec) -> usize {
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
        let report = exec.reports.fd().map(|fd| (What::Report, fd));
        let process = (What::Process, exec.pidfd.as_fd());
        report.into_iter().chain([process]).collect()
    }

    /// Kills the exec in `slot`, which cannot be followed, and forgets it.
    pub(super) fn abandon(&mut self, slot: usize) {
        if let Some(exec) = self.slots.get_mut(slot).and_then(Option::take) {
            exec.kill_whole();
            let _ = waitid(WaitId::PidFd(exec.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// The processes of all.
    pub(super) fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().flatten().map(|exec| exec.pidfd.as_fd())
    }

    /// Whether some have yet to come to run.
    pub(super) fn is_starting(&self) -> bool {
        self.slots.iter().flatten().any(|exec| !exec.started)
    }

    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// What was queued for the daemon.
    pub(super) fn take_events(&mut self) -> Vec<(FromKeeper, Vec<OwnedFd>)> {
        std::mem::take(&mut self.events)
    }

    /// Kills all: whoever asked is gone.
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

    /// Whether it has ended; then whoever asked is told.
    fn ended(&mut self, exec: &mut Exec, slot: usize, poll: &OwnedFd) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(exec.pidfd.as_fd()), options) {
            Ok(None) => return false,
            status => status.ok().flatten(),
        };
        let _ = epoll::delete(poll, &exec.pidfd);
        self.handle_reports(exec, slot, poll);
        let (code, cause) = match &status {
            Some(status) => exec.reports.exit_status(status, exec.started),
            // Not ours to wait for: how it ended is not known, but whoever asked is told that it has.
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
                };
                FromKeeper::ExecEnded { request, exit }
            }
        };
        self.events.push((events, Vec::new()));
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
