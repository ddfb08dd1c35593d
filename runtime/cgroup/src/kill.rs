//! Kills all processes of a cgroup and waits until the kernel has removed them from it.
//! With a unified tree the kernel does it (`cgroup.kill`, which no fork escapes); on a pure v1 node
//! the freezer stops the processes while they are signalled. A pid is signalled through a
//! pidfd and only if the cgroup still lists it after the pidfd was opened, so that a reused
//! pid is never signalled.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Error;
use super::files;
use super::walk;

/// How long we wait for killed processes to end. A process in uninterruptible sleep may take longer.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long we wait for the v1 freezer before we signal what is not yet frozen.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(50);

/// The directories of one cgroup that killing it needs.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// Its path, for messages.
    pub(super) path: &'a str,
    /// Where its processes are listed; together they list them all.
    pub(super) listings: Vec<PathBuf>,
    /// Its directory in a v2 tree.
    pub(super) unified: Option<PathBuf>,
    /// Its directory in the v1 freezer hierarchy.
    pub(super) freezer: Option<PathBuf>,
}

impl Target<'_> {
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
/// Its pause between two rounds.
const LIST_PAUSE: Duration = Duration::from_micros(500);

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
    /// Kills the listed processes until none is listed, for a tenth of a second at most: a process that is stuck in
    /// the kernel dies later. The pids are those of the caller's pid namespace.
    ///
    /// Errors: the cgroup cannot be read, or a process not be signalled.
    pub fn kill(&self) -> Result<(), Error> {
        let target = Target {
            path: "an exec's cgroup",
            listings: self.listings.clone(),
            unified: None,
            freezer: self.freezer.clone(),
        };
        let begun = Instant::now();
        loop {
            let alive = target.pids()?;
            if alive.is_empty() || begun.elapsed() > LIST_TIMEOUT {
                return Ok(());
            }
            signal_all(&target, &alive)?;
            thread::sleep(LIST_PAUSE);
        }
    }
}

/// See [`super::Cgroup::kill`].
pub(super) fn kill(cgroup: &Target) -> Result<(), Error> {
    let started = Instant::now();
    let mut kernel_kills = kernel_kill(cgroup)?;
    let mut pause = Duration::from_micros(50);
    loop {
        let alive = cgroup.pids()?;
        let Some(&pid) = alive.first() else {
            return Ok(());
        };
        if !kernel_kills {
            match signal_all(cgroup, &alive) {
                // Another process emptied and removed it meanwhile.
                Err(_) if cgroup.pids()?.is_empty() => return Ok(()),
                signalled => signalled?,
            }
        }
        let waited = started.elapsed();
        if waited > KILL_TIMEOUT {
            let path = cgroup.path.to_owned();
            return Err(Error::StillAlive {
                path,
                left: alive.len(),
                pid,
                waited_ms: waited.as_millis(),
            });
        }
        // Processes left after the first rounds may not be in the unified tree, or may be frozen.
        kernel_kills = kernel_kills && waited < Duration::from_millis(2);
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
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

fn signal_all(cgroup: &Target, alive: &[i32]) -> Result<(), Error> {
    let Some(freezer) = cgroup.freezer.as_deref().filter(|dir| dir.is_dir()) else {
        return signal_listed(cgroup, alive);
    };
    freeze(freezer)?;
    let signalled = cgroup
        .pids()
        .and_then(|frozen| signal_listed(cgroup, &frozen));
    thaw(freezer)?;
    signalled
}

/// SIGKILL to each of `pids` that the cgroup still lists.
fn signal_listed(cgroup: &Target, pids: &[i32]) -> Result<(), Error> {
    let open = |pid: &i32| {
        let opened = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        Some((*pid, opened))
    };
    let opened: Vec<(i32, OwnedFd)> = pids.iter().filter_map(open).collect();
    let still = cgroup.pids()?;
    for (pid, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
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

fn freeze(freezer: &Path) -> Result<(), Error> {
    let state = freezer.join("freezer.state");
    files::write(&state, "FROZEN")?;
    let deadline = Instant::now() + FREEZE_TIMEOUT;
    while files::read(&state)?.trim() != "FROZEN" && Instant::now() < deadline {
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Thaws the cgroup and those below it: a frozen v1 process does not die of SIGKILL.
fn thaw(freezer: &Path) -> Result<(), Error> {
    walk::each(freezer, |cgroup| {
        match cgroup.write("freezer.state", "THAWED") {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            written => written,
        }
    })
}
