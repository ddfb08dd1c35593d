//! A keeper's containers: which are starting, running or exited, and the events for the daemon.
//!
//! The event loop calls it when descriptors are ready, deadlines pass or requests arrive; it queues events. A container
//! goes Starting -> Running -> Draining -> Exited and stays until it is forgotten.
//! Invariant: the exit record is on disk before the event is sent; a stalled log delays that by at most [`DRAIN`], and
//! delays nothing else.
//! It must not know about sockets or forking.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod attach;
mod entry;
mod listing;
mod starting;

use entry::{Entry, State, What, borrow, take_terminal};

pub(super) use entry::Watch;

use super::container_process::ForkedContainer;
use super::log::LogThread;
use super::reports::{self, Ended, ReportEvent, Reports, kill};
use super::tokens::FIRST_WATCH;
use crate::own_log;
use coracle_control::exits::{self, now_ns};
use coracle_control::messages::{Answer, FromKeeper};
use coracle_spec::failpoint;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

/// How long an exited container's log may take to be written before its exit is reported without it.
const DRAIN: Duration = Duration::from_millis(1000);
/// How long a container process may take to report that it is ready.
const START: Duration = Duration::from_secs(25);

/// All containers of one keeper.
pub(super) struct Containers {
    exits: PathBuf,
    slots: Vec<Option<Entry>>,
    /// Log threads on a disk that never answered; they end with the keeper.
    stalled: Vec<LogThread>,
    events: Vec<(FromKeeper, Vec<OwnedFd>)>,
}

impl Containers {
    pub(super) fn new(exits: PathBuf) -> Self {
        Self {
            exits,
            slots: Vec::new(),
            stalled: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The processes of all containers, exited ones included.
    pub(super) fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().flatten().map(|entry| entry.pidfd.as_fd())
    }

    /// Whether some container is starting.
    pub(super) fn is_starting(&self) -> bool {
        let starting = |entry: &Entry| matches!(entry.state, State::Starting { .. });
        self.slots.iter().flatten().any(starting)
    }

    /// Whether no container runs.
    pub(super) fn all_exited(&self) -> bool {
        self.slots
            .iter()
            .flatten()
            .all(|e| matches!(e.state, State::Exited(_)))
    }

    /// Takes the events that were queued for the daemon.
    pub(super) fn take_events(&mut self) -> Vec<(FromKeeper, Vec<OwnedFd>)> {
        std::mem::take(&mut self.events)
    }

    /// The daemon that sent the requests is gone: drop the pending answers.
    pub(super) fn forget_requester(&mut self) {
        self.events.clear();
        for entry in self.slots.iter_mut().flatten() {
            entry.reopening = None;
            if let State::Starting { request, .. } | State::Draining { request, .. } =
                &mut entry.state
            {
                *request = None;
            }
        }
    }

    /// Adds a forked process; `watch` registers its descriptors with epoll.
    pub(super) fn add(
        &mut self,
        id: ContainerId,
        request: u64,
        forked: ForkedContainer,
        watch: impl Fn(Watch, BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) {
        let slot = self.free_slot();
        let at = |what| Watch { slot, what };
        let mut watched = watch(at(What::Process), forked.pidfd.as_fd());
        watched = watched.and(watch(at(What::Report), forked.report.as_fd()));
        if let Some(log) = &forked.log {
            watched = watched.and(watch(at(What::Log), borrow(log.done_fd())));
        }
        if watched.is_err() {
            // It cannot be watched, so it must not run; the deadline finds that it has ended.
            kill(forked.pidfd.as_fd());
        }
        self.slots[slot] = Some(Entry {
            id,
            state: State::Starting {
                request: Some(request),
                until: Instant::now() + START,
            },
            pidfd: forked.pidfd,
            is_held: false,
            reports: Reports::new(forked.report),
            log: forked.log,
            log_file: forked.log_file,
            terminal: forked.terminal,
            reopening: None,
            started_at: now_ns(),
            stdin: forked.stdin,
        });
    }

    fn free_slot(&mut self) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    /// A watched descriptor is ready.
    pub(super) fn ready(&mut self, token: u64, epoll: &OwnedFd) {
        let slot = (token / 4) as usize;
        self.with_entry(slot, |all, entry| match token % 4 {
            t if t == What::Process as u64 => all.ended(entry, slot, epoll),
            t if t == What::Report as u64 => all.handle_reports(entry, slot, epoll),
            _ => all.log_changed(entry),
        });
    }

    /// Some child has ended, or is let go by whoever traced it: looks again at those that had ended already.
    pub(super) fn child_ended(&mut self, epoll: &OwnedFd) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|entry| entry.is_held) {
                self.with_entry(slot, |all, entry| all.ended(entry, slot, epoll));
            }
        }
    }

    fn with_entry(&mut self, slot: usize, work: impl FnOnce(&mut Self, &mut Entry)) {
        let Some(mut entry) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        work(self, &mut entry);
        self.finish(&mut entry, false);
        let has_ended = matches!(entry.state, State::Exited(_));
        self.slots[slot] = Some(entry);
        if has_ended {
            self.bound_exited();
        }
    }

    /// Handles deadlines that have passed.
    pub(super) fn expire(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let Some(mut entry) = self.slots[slot].take() else {
                continue;
            };
            match &mut entry.state {
                State::Starting { until, .. } if *until <= now => {
                    // The request is answered when it ends, which may take long on a hung disk.
                    *until = now + Duration::from_secs(86_400);
                    let text = format!("the jail was not ready within {} s", START.as_secs());
                    entry.reports.set_failure(text);
                    kill(entry.pidfd.as_fd());
                }
                State::Draining { until, .. } if *until <= now => self.finish(&mut entry, true),
                _ => {}
            }
            self.slots[slot] = Some(entry);
        }
    }

    /// When to call [`Self::expire`] next; `None` if no deadline is pending.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let until = |e: &Entry| match e.state {
            State::Starting { until, .. } | State::Draining { until, .. } => Some(until),
            _ => None,
        };
        self.slots.iter().flatten().filter_map(until).min()
    }

    fn handle_reports(&mut self, entry: &mut Entry, slot: usize, epoll: &OwnedFd) {
        for event in entry.reports.read_events(epoll) {
            match event {
                ReportEvent::Runs => self.started(entry),
                ReportEvent::Terminal(control) => take_terminal(entry, control, slot, epoll),
                ReportEvent::Moved(next) => {
                    let what = What::Process;
                    let token = FIRST_WATCH + Watch { slot, what }.token();
                    reports::follow(&mut entry.pidfd, next, epoll, token);
                }
            }
        }
    }

    fn started(&mut self, entry: &mut Entry) {
        let State::Starting { request, .. } = entry.state else {
            return;
        };
        entry.started_at = now_ns();
        entry.state = State::Running;
        let _ = failpoint::hit("keeper.started");
        if let (Some(request), Ok(pidfd)) = (request, entry.pidfd.try_clone()) {
            let started_at = entry.started_at;
            let answer = Answer::Started { started_at };
            self.events
                .push((FromKeeper::Answer { request, answer }, vec![pidfd]));
        }
    }

    /// The process has ended: reaps it, if its tracer lets us, reads its last report, and lets its log drain.
    fn ended(&mut self, entry: &mut Entry, slot: usize, epoll: &OwnedFd) {
        self.handle_reports(entry, slot, epoll);
        let ended = reports::reap(entry.pidfd.as_fd(), epoll);
        entry.is_held = matches!(ended, Ended::Held);
        let Ended::With(status) = ended else {
            return;
        };
        entry.reports.end();
        self.handle_reports(entry, slot, epoll);
        let (request, ran) = match entry.state {
            State::Starting { request, .. } => (request, false),
            _ => (None, true),
        };
        let (code, cause) = entry.reports.exit_status(&status, ran);
        let exit = Exit {
            code,
            signal: status.terminating_signal(),
            finished_at: now_ns(),
            cause,
            message: entry.reports.message(),
        };
        entry.state = State::Draining {
            exit,
            until: Instant::now() + DRAIN,
            request,
        };
        if let Some(log) = &entry.log {
            log.close();
        }
    }

    /// The process of container `id`, if it runs. Before that it may still see the node.
    pub(super) fn process(&self, id: &ContainerId) -> Option<BorrowedFd<'_>> {
        let entry = self.slots.iter().flatten().find(|entry| entry.id == *id)?;
        matches!(entry.state, State::Running).then(|| entry.pidfd.as_fd())
    }

    fn log_changed(&mut self, entry: &mut Entry) {
        let Some(log) = &entry.log else { return };
        log.acknowledge();
        if log.has_reopened()
            && let Some(request) = entry.reopening.take()
        {
            self.events.push((
                FromKeeper::Answer {
                    request,
                    answer: Answer::Done,
                },
                Vec::new(),
            ));
        }
    }

    /// Finishes a drained container: writes the record, then queues the event. `timed_out`: the log did not drain in
    /// time.
    fn finish(&mut self, entry: &mut Entry, timed_out: bool) {
        let State::Draining { exit, request, .. } = &entry.state else {
            return;
        };
        if !timed_out && entry.log.as_ref().is_some_and(|log| !log.is_finished()) {
            return;
        }
        let (exit, request) = (exit.clone(), *request);
        let _ = failpoint::hit("keeper.exit-record");
        // On a full disk the record is lost, but the event is sent: the daemon has its own record.
        let _ = exits::write(&self.exits, &entry.id, &exit);
        if let Some(log) = entry.log.take() {
            if log.dropped() > 0 {
                // Logged to the inherited standard error, because the daemon may be gone.
                own_log::say(&format!(
                    "container {}: lost {} log lines to a full or broken disk",
                    entry.id,
                    log.dropped()
                ));
            }
            self.join_log(log);
        }
        if let (Some(request), Cause::StartFailed(message)) = (request, &exit.cause) {
            let answer = Answer::Failed {
                start_failed: true,
                message: message.clone(),
            };
            self.events
                .push((FromKeeper::Answer { request, answer }, Vec::new()));
        }
        self.events.push((
            FromKeeper::Exited {
                container: entry.id.clone(),
                exit: exit.clone(),
            },
            Vec::new(),
        ));
        entry.state = State::Exited(exit);
    }

    fn join_log(&mut self, log: LogThread) {
        match log.is_finished() {
            true => log.join(),
            false => self.stalled.push(log),
        }
    }

    fn find(&mut self, id: &ContainerId) -> io::Result<&mut Option<Entry>> {
        let found = self
            .slots
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|e| e.id == *id));
        found.ok_or_else(|| io::Error::other(format!("container {id} is not kept here")))
    }

    /// Passes another log file to a container's log thread; an event answers the request.
    pub(super) fn reopen(
        &mut self,
        id: &ContainerId,
        request: u64,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let Some(entry) = self.find(id)? else {
            return Ok(());
        };
        match (&entry.log, fds.pop(), &entry.state) {
            (Some(log), Some(file), State::Running | State::Starting { .. }) => {
                entry.reopening = Some(request);
                log.reopen(file);
                Ok(())
            }
            _ => Err(io::Error::other(format!(
                "container {id} writes no log now"
            ))),
        }
    }

    /// Removes an exited container and its record, if they exist.
    pub(super) fn forget(&mut self, id: &ContainerId) -> io::Result<()> {
        if let Ok(slot) = self.find(id) {
            if !matches!(
                slot,
                Some(Entry {
                    state: State::Exited(_),
                    ..
                })
            ) {
                return Err(io::Error::other(format!("container {id} has not ended")));
            }
            *slot = None;
        }
        exits::remove(&self.exits, id);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
