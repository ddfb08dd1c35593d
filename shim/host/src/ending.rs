//! Kills what is in a cgroup, and removes it, without a thread that waits meanwhile.
//!
//! Called by: all effects that end containers, execs and pods. Calls: cgroups.
//! A process in uninterruptible sleep (on a dead disk, say) does not die of SIGKILL, and thousands take long to; a tenant
//! can have as many of either as it likes. So a thread only kills, looks or removes, which is short; all waiting is of
//! tasks. At most [`AT_A_TIME`] threads do it, which leaves the other threads to the other pods however much there is to
//! end.
//! Invariants: each can be repeated; an absent cgroup is fine.
//! Must not know: whose cgroup it is.

use std::time::{Duration, Instant};

use coracle_cgroup::{self as cgroup, Cgroup, Killing, REMOVE_TIMEOUT};
use coracle_lifecycle::{Error, Kind};
use tokio::sync::Semaphore;

use super::{Host, blocking};

/// Most threads that kill or remove at a time, of all that block.
const AT_A_TIME: usize = 16;
/// How long a thread waits for killed processes, the first time. Most have ended by then.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// The pause between two steps of a removal, which begins when no process is left.
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);
/// The shortest and the longest pause between two steps of a killing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Turns of threads: they are the process's, whatever host asks for one.
static TURNS: Semaphore = Semaphore::const_new(AT_A_TIME);

impl Host {
    /// Kills the processes in a cgroup and waits for their end, at most for the cgroup's own timeout.
    pub(super) async fn empty_cgroup(&self, path: &str) -> Result<(), Error> {
        let killing = self.open_cgroup(path)?.killing();
        killed(killing, || format!("kill what is in cgroup {path}")).await
    }

    /// Kills the processes in a cgroup and removes it. An absent one is fine.
    pub(super) async fn remove_cgroup(&self, path: &str) -> Result<(), Error> {
        let cgroup = self.open_cgroup(path)?;
        if !cgroup.exists() {
            return Ok(());
        }
        let what = || format!("remove cgroup {path}");
        killed(cgroup.killing(), what).await?;
        removed(move || cgroup.remove_some(), REMOVE_TIMEOUT, what).await
    }

    /// Thaws of these cgroups what a killing by a daemon or keeper that died has frozen. Blocks, for some 100 ms at most for
    /// each exec that was being killed.
    pub(super) fn thaw_left(&self, cgroups: &[String]) {
        for path in cgroups {
            let opened = self.open_cgroup(path);
            match opened.map(|cgroup| cgroup.thaw_left()) {
                Ok(Ok(thawed)) => {
                    for cgroup in thawed {
                        tracing::warn!(
                            cgroup,
                            "it was frozen to be killed by a process that died; it is thawed"
                        );
                    }
                }
                Ok(Err(error)) => tracing::error!(cgroup = path, %error, "it may be frozen"),
                Err(error) => {
                    tracing::error!(cgroup = path, error = error.chain(), "it may be frozen")
                }
            }
        }
    }

    fn open_cgroup(&self, path: &str) -> Result<Cgroup, Error> {
        let opened = self.parts.cgroups.open(path);
        opened.map_err(|error| Error::because(Kind::Bug, format!("open cgroup {path}"), error))
    }
}

/// Takes the steps of a killing until it is done.
pub(super) async fn killed(mut killing: Killing, what: impl Fn() -> String) -> Result<(), Error> {
    let begun = Instant::now();
    let mut wait = FIRST_WAIT;
    loop {
        let (is_done, left) = in_turn(move || (killing.step(wait), killing)).await?;
        if is_done.map_err(|error| Error::because(Kind::Io, what(), error))? {
            return Ok(());
        }
        killing = left;
        wait = Duration::ZERO;
        pause(begun).await;
    }
}

/// Calls `remove` until nothing is in its way, for `limit` at most.
pub(super) async fn removed(
    remove: impl Fn() -> Result<(), cgroup::Error> + Clone + Send + 'static,
    limit: Duration,
    what: impl Fn() -> String,
) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        match in_turn(remove.clone()).await? {
            Err(error) if error.is_busy() && begun.elapsed() < limit => {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            removed => return removed.map_err(|error| Error::because(Kind::Io, what(), error)),
        }
    }
}

/// Runs one step on a thread, in turn.
async fn in_turn<T: Send + 'static>(step: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let turn = TURNS
        .acquire()
        .await
        .map_err(|error| Error::because(Kind::Bug, "wait for a turn to kill", error))?;
    blocking("ending processes", move || {
        let _turn = turn;
        Ok(step())
    })
    .await
}

/// Longer, the longer it has taken: what is stuck costs little.
async fn pause(begun: Instant) {
    tokio::time::sleep((begun.elapsed() / 8).clamp(PAUSES.0, PAUSES.1)).await;
}
