//! Returns memory that a large request needed to the kernel.
//!
//! Called by `cri` with every call. When a million small texts are freed, the allocator keeps their pages: 17 MiB of
//! labels would cost 100 MiB until the daemon ends.
//! Invariants: at most one check every five seconds, and one after the last call; none without calls. Memory is
//! returned when the process has grown by [`BUSY_WORTH`] since the last time, or by [`QUIET_WORTH`] when there was no
//! call meanwhile or the last time was [`LONG`] ago. Must not know: how much a request may hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_runtime::memory::give_memory_back;

/// How long after a call the process is checked.
const SETTLE: Duration = Duration::from_secs(5);
/// Growth since the last time that is always worth the work. Bytes.
const BUSY_WORTH: u64 = 4 << 20;
/// Growth that is worth the work when the daemon is idle. Bytes.
const QUIET_WORTH: u64 = 512 << 10;
/// How long the smaller growth may stay while the kubelet keeps calling.
const LONG: Duration = Duration::from_secs(60);

/// A check is scheduled.
static DUE: AtomicBool = AtomicBool::new(false);
/// There was a call since the check was scheduled.
static CALLED: AtomicBool = AtomicBool::new(false);
/// Resident bytes after the last time.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Schedules a check of the process, unless one is scheduled.
pub fn settle_soon() {
    CALLED.store(true, Ordering::Release);
    if DUE.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::spawn(async {
        let mut last = Instant::now();
        loop {
            CALLED.store(false, Ordering::Release);
            tokio::time::sleep(SETTLE).await;
            let is_quiet = !CALLED.load(Ordering::Acquire);
            let worth = worth(is_quiet, last.elapsed());
            // Trimming waits for the allocator's locks.
            let trimmed = tokio::task::spawn_blocking(move || trim(worth)).await;
            if trimmed.unwrap_or_default() {
                last = Instant::now();
            }
            if is_quiet {
                break;
            }
        }
        DUE.store(false, Ordering::Release);
        if CALLED.load(Ordering::Acquire) {
            // A call came between the last check and now.
            settle_soon();
        }
    });
}

/// The growth that is worth the work.
fn worth(is_quiet: bool, since: Duration) -> u64 {
    match is_quiet || since >= LONG {
        true => QUIET_WORTH,
        false => BUSY_WORTH,
    }
}

/// Returns free memory if the process has grown by `worth`; false if it has not.
fn trim(worth: u64) -> bool {
    let Some(resident) = resident() else {
        return false;
    };
    let kept = KEPT.load(Ordering::Acquire);
    if resident < kept + worth {
        KEPT.fetch_min(resident, Ordering::AcqRel);
        return false;
    }
    give_memory_back();
    if let Some(resident) = self::resident() {
        KEPT.store(resident, Ordering::Release);
    }
    true
}

/// Resident bytes of this process; `None` where /proc does not tell.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_returned() {
        let held: Vec<String> = (0..1_000_000_u32).map(|n| n.to_string()).collect();
        // The allocations after them keep the heap from shrinking by itself.
        let last = std::hint::black_box(Box::new([1_u8; 64]));
        let full = resident().unwrap();
        drop(held);
        KEPT.store(0, Ordering::Release);
        assert!(trim(worth(false, Duration::ZERO)));
        let after = resident().unwrap();
        assert!(
            after + (16 << 20) < full,
            "{full} bytes before, {after} after"
        );
        assert_eq!(last[0], 1);
    }

    #[test]
    fn small_growth_is_returned_when_the_daemon_is_idle() {
        assert_eq!(worth(false, LONG - Duration::from_secs(1)), BUSY_WORTH);
        assert_eq!(worth(false, LONG), QUIET_WORTH);
        assert_eq!(worth(true, Duration::ZERO), QUIET_WORTH);
    }
}
