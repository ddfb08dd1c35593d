//! Kills all processes of a cgroup and waits until the kernel has removed them from it.
//! With a unified tree the kernel does it (`cgroup.kill`, which no fork escapes); on a pure v1 node
//! the freezer stops the processes while they are signalled. A pid is signalled through a
//! pidfd and only if the cgroup still lists it after the pidfd was opened, so that a reused
//! pid is never signalled.
//! Called by: [`Cgroup`] and [`ExecLeaf`]; a caller blocks, or takes the steps of a [`Killing`] one by one.
//! Invariants: a step works for about [`STEP`] and has at most [`CHUNK`] pidfds open, however many processes there are;
//! what it froze is thawed, also when the killing is given up. What is frozen has a mark beside it, so that it is also thawed
//! when the process that kills dies meanwhile (`thaw`), and nothing else is.
//! Not here: how long a caller pauses between two steps.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Error;
use super::files;
use super::thaw;
use super::{Cgroup, ExecLeaf};

/// How long we wait for killed processes to end. A process in uninterruptible sleep may take longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the kernel may take to kill a cgroup as a whole before we signal what is left: it may not be in the unified
/// tree, or may be frozen.
const KERNEL_TIMEOUT: Duration = Duration::from_millis(50);
/// How long we wait for the v1 freezer before we signal what is not yet frozen.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(50);
/// How long one step works, but for the last thing it does.
pub(super) const STEP: Duration = Duration::from_millis(40);
/// Most processes that are signalled, and whose pidfds are open, at a time.
const CHUNK: usize = 256;
/// The first and the longest pause between two signals to the same processes.
const ROUNDS: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(50));
/// The first and the longest pause within a step.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));
/// How long a caller that blocks waits in each step.
const BLOCKING: Duration = Duration::from_millis(100);

/// The directories of one cgroup that killing it needs.
#[derive(Debug)]
pub(super) struct Target {
    /// Its path, for messages.
    pub(super) path: String,
    /// Where its processes are listed; together they list them all.
    pub(super) listings: Vec<PathBuf>,
    /// Its directory in a v2 tree.
    pub(super) unified: Option<PathBuf>,
    /// Its directory in the v1 freezer hierarchy.
    pub(super) freezer: Option<PathBuf>,
}

impl Target {
    /// The processes in the cgroup and below it, ascending; none if it is gone.
    pub(super) fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        for dir in &self.listings {
            files::collect_pids(dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

/// How long a keeper kills by list.
const LIST_TIMEOUT: Duration = Duration::from_millis(100);

/// The process lists of a cgroup that the kernel cannot kill as a whole (pure v1, or before Linux 5.14): the last
/// resort of a keeper whose daemon is gone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KillList {
    /// Directories that together list all its processes.
    pub listings: Vec<PathBuf>,
    /// Its directory in the freezer hierarchy, if it has one.
    pub freezer: Option<PathBuf>,
}

impl KillList {
    /// Kills the listed processes until none is listed, for about a tenth of a second at most: a process that is stuck in
    /// the kernel dies later. The pids are those of the caller's pid namespace.
    ///
    /// Errors: the cgroup cannot be read, or a process not be signalled.
    pub fn kill(&self) -> Result<(), Error> {
        let begun = Instant::now();
        let mut killing = Killing::new(Target {
            path: "an exec's cgroup".to_owned(),
            listings: self.listings.clone(),
            unified: None,
            freezer: self.freezer.clone(),
        });
        while begun.elapsed() < LIST_TIMEOUT {
            if killing.step(LIST_TIMEOUT.saturating_sub(begun.elapsed()))? {
                break;
            }
        }
        Ok(())
    }
}

/// The killing of all processes of a cgroup, in steps, by [`Cgroup::killing`] or [`ExecLeaf::killing`]. Dropping it gives
/// it up: processes may be left.
#[derive(Debug)]
pub struct Killing {
    target: Target,
    begun: Instant,
    stage: Stage,
    /// The pause before the processes that are left then are signalled again.
    pause: Duration,
    /// Whether the freezer holds them.
    is_frozen: bool,
}

/// How far a killing is.
#[derive(Debug)]
enum Stage {
    /// Nothing is done.
    New,
    /// The kernel kills, or signals were sent; those left are signalled at the time.
    Dying(Instant),
    /// The freezer stops the processes, until the time at most.
    Freezing(Instant),
    /// These are still to be signalled.
    Signalling(Vec<i32>),
}

/// What the next move of a killing is.
enum Next {
    /// None is left.
    Done,
    /// There is more to do now.
    Go,
    /// It is up to the kernel.
    Wait,
}

impl Killing {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            begun: Instant::now(),
            stage: Stage::New,
            pause: ROUNDS.0,
            is_frozen: false,
        }
    }

    /// Goes on killing. Works for some 40 ms at most, or waits for the kernel for at most `wait`. True once no process is
    /// left; an absent cgroup has none.
    ///
    /// Errors: processes outlived SIGKILL for 2 s; the cgroup cannot be read, or a process not be signalled.
    pub fn step(&mut self, wait: Duration) -> Result<bool, Error> {
        let (begun, mut pause) = (Instant::now(), PAUSES.0);
        loop {
            match self.advance() {
                // Another process emptied and removed it meanwhile.
                Err(_) if self.target.pids().is_ok_and(|pids| pids.is_empty()) => return Ok(true),
                Err(error) => return Err(error),
                Ok(Next::Done) => return Ok(true),
                Ok(Next::Go) if begun.elapsed() < STEP => {}
                Ok(Next::Wait) if begun.elapsed() + pause <= wait => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES.1);
                }
                Ok(Next::Go | Next::Wait) => return Ok(false),
            }
        }
    }

    /// Goes on until the cgroup is being frozen, and no further.
    #[cfg(test)]
    pub(super) fn stage_until_frozen(&mut self) {
        while !matches!(self.stage, Stage::Freezing(_)) {
            let _ = self.advance();
        }
    }

    /// As often as needed. Blocks.
    fn finish(mut self) -> Result<(), Error> {
        while !self.step(BLOCKING)? {}
        Ok(())
    }

    fn advance(&mut self) -> Result<Next, Error> {
        match &mut self.stage {
            Stage::New if kernel_kill(&self.target)? => {
                self.stage = Stage::Dying(Instant::now() + KERNEL_TIMEOUT);
                Ok(Next::Go)
            }
            Stage::New => self.look(None),
            Stage::Dying(until) => {
                let until = *until;
                self.look(Some(until))
            }
            Stage::Freezing(until) => {
                let until = *until;
                self.freeze(until)
            }
            Stage::Signalling(pids) => {
                let chunk = pids.split_off(pids.len().saturating_sub(CHUNK));
                if !chunk.is_empty() {
                    signal_listed(&self.target, &chunk)?;
                    return Ok(Next::Go);
                }
                self.thaw()?;
                self.stage = Stage::Dying(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(ROUNDS.1);
                Ok(Next::Go)
            }
        }
    }

    /// Whether any process is left; those that are after `until` are signalled.
    fn look(&mut self, until: Option<Instant>) -> Result<Next, Error> {
        let alive = self.target.pids()?;
        let Some(&pid) = alive.first() else {
            return Ok(Next::Done);
        };
        let waited = self.begun.elapsed();
        if waited > KILL_TIMEOUT {
            return Err(Error::StillAlive {
                path: self.target.path.clone(),
                left: alive.len(),
                pid,
                waited_ms: waited.as_millis(),
            });
        }
        if until.is_some_and(|until| Instant::now() < until) {
            return Ok(Next::Wait);
        }
        self.stage = match self.target.freezer.as_ref().filter(|dir| dir.is_dir()) {
            None => Stage::Signalling(alive),
            Some(dir) => {
                self.is_frozen = true;
                thaw::mark(dir);
                files::write(&dir.join("freezer.state"), "FROZEN")?;
                Stage::Freezing(Instant::now() + FREEZE_TIMEOUT)
            }
        };
        Ok(Next::Go)
    }

    /// Begins to signal once the processes are frozen, or after `until`.
    fn freeze(&mut self, until: Instant) -> Result<Next, Error> {
        if let Some(dir) = &self.target.freezer
            && Instant::now() < until
            && files::read(&dir.join("freezer.state"))?.trim() != "FROZEN"
        {
            return Ok(Next::Wait);
        }
        self.stage = Stage::Signalling(self.target.pids()?);
        Ok(Next::Go)
    }

    /// Thaws the cgroup and those below it: a frozen v1 process does not die of SIGKILL.
    fn thaw(&mut self) -> Result<(), Error> {
        let was_frozen = std::mem::take(&mut self.is_frozen);
        match self.target.freezer.as_deref().filter(|_| was_frozen) {
            Some(freezer) => thaw::all(freezer),
            None => Ok(()),
        }
    }
}

impl Drop for Killing {
    fn drop(&mut self) {
        // Whoever gave it up has an error of its own to report.
        let _ = self.thaw();
    }
}

impl Cgroup {
    /// Kills every process in this cgroup and below it, and waits until none is left.
    /// An empty or absent cgroup is a success; a frozen one is thawed where that is needed.
    /// Errors: processes that outlive SIGKILL for 2 s; call again later.
    pub fn kill(&self) -> Result<(), Error> {
        self.killing().finish()
    }

    /// As [`Cgroup::kill`], in steps, for callers that must not block for long.
    #[must_use]
    pub fn killing(&self) -> Killing {
        Killing::new(self.target())
    }
}

impl ExecLeaf {
    /// Kills every process of the exec and waits until none is left. As [`Cgroup::kill`], but a
    /// container that was frozen as a whole on v1 stays frozen, and so does its exec.
    /// Errors: processes that outlive SIGKILL for 2 s; call again later.
    pub fn kill(&self) -> Result<(), Error> {
        self.killing().finish()
    }

    /// As [`ExecLeaf::kill`], in steps, for callers that must not block for long.
    #[must_use]
    pub fn killing(&self) -> Killing {
        Killing::new(self.target())
    }
}

/// Writes `cgroup.kill`. False if there is no such file.
fn kernel_kill(cgroup: &Target) -> Result<bool, Error> {
    let Some(dir) = &cgroup.unified else {
        return Ok(false);
    };
    match files::write(&dir.join("cgroup.kill"), "1") {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// SIGKILL to each of `pids`, at most [`CHUNK`], that the cgroup still lists.
fn signal_listed(cgroup: &Target, pids: &[i32]) -> Result<(), Error> {
    let open = |pid: &i32| {
        let opened = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        Some((*pid, opened))
    };
    let opened: Vec<(i32, OwnedFd)> = pids.iter().filter_map(open).collect();
    let still = cgroup.pids()?;
    let is_listed = |pid: &i32| still.binary_search(pid).is_ok();
    for (pid, pidfd) in opened.iter().filter(|(pid, _)| is_listed(pid)) {
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                let file = PathBuf::from(format!("/proc/{pid}"));
                return Err(Error::io("send SIGKILL to", &file, error.into()));
            }
        }
    }
    Ok(())
}
