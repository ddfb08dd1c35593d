//! What a daemon holds before and after a churn, and how long it may take to let go.
//!
//! Called by: [`super`]. Not here: what is outside of the daemon, which [`crate::leaks`] looks at.

use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::vitals::{self, Vitals};
use crate::{Outcome, leaks};

/// How much the daemon's resident memory may grow, KiB.
const GROWTH_LIMIT_KIB: u64 = 5 << 10;
/// How long the daemon may take to let go of memory, threads and descriptors: idle threads end after ten seconds.
const SETTLE: Duration = Duration::from_secs(60);
/// How long after the last call the daemon returns unused memory.
const QUIET: Duration = Duration::from_secs(6);

/// What must be exactly as it was: the machine's side is the daemon's own snapshot, this is what is inside it.
pub(super) struct Footprint {
    images: usize,
    descriptors: Vec<String>,
}

impl Footprint {
    /// What the daemon holds now.
    pub(super) fn of(daemon: &Daemon) -> Self {
        Self {
            images: leaks::kept_files(daemon.scratch()),
            descriptors: vitals::descriptors(daemon.pid()),
        }
    }

    /// Waits until no more is held than before. Errors: what is more, by name.
    pub(super) async fn expect_no_growth(&self, daemon: &Daemon) -> Outcome<()> {
        daemon.expect_no_leak().await?;
        let end = Instant::now() + SETTLE;
        loop {
            let now = Self::of(daemon);
            if now.images == self.images && now.descriptors.len() <= self.descriptors.len() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!(
                    "files of images and code: {} before, {} now\ndescriptors before: {:?}\ndescriptors now: {:?}",
                    self.images, now.images, self.descriptors, now.descriptors
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Waits until the daemon has returned memory (5 s after the last call) and is no larger than allowed. Returns what it
/// holds then. Errors: it stays larger.
pub(super) async fn wait_for_memory(daemon: &Daemon, before: Vitals) -> Outcome<Vitals> {
    tokio::time::sleep(QUIET).await;
    let end = Instant::now() + SETTLE;
    loop {
        let now = Vitals::of(daemon.pid())?;
        if now.rss_kib <= before.rss_kib + GROWTH_LIMIT_KIB {
            return Ok(now);
        }
        if Instant::now() > end {
            return Err(format!(
                "the daemon's resident memory grew by {} KiB, the limit is {GROWTH_LIMIT_KIB}: before {before:?}, now {now:?}",
                now.rss_kib - before.rss_kib
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
