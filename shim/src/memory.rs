//! Keeps the daemon as small as what it holds: memory that a large request took goes back to the kernel.
//!
//! Called by `cri` with every call. A million small texts, freed, leave the allocator with pages that it keeps for itself:
//! 17 MiB of labels cost 100 MiB until the daemon ends.
//! Invariants: at most one look every five seconds, and one after the last call; none while nobody calls. Pages are given
//! back when the process has grown by [`BUSY_WORTH`] since the last time, by [`QUIET_WORTH`] when nobody called meanwhile
//! or the last time was [`LONG`] ago. Not here: how much a request may hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_runtime::memory::give_memory_back;

/// How long after a call the process is looked at.
const SETTLE: Duration = Duration::from_secs(5);
/// Growth since the last time that is worth the work at any time. Bytes.
const BUSY_WORTH: u64 = 4 << 20;
/// Growth that is worth it when there is time. Bytes.
const QUIET_WORTH: u64 = 512 << 10;
/// How long the smaller growth may stay on a node whose kubelet never stops calling.
const LONG: Duration = Duration::from_secs(60);

/// A look is due.
static DUE: AtomicBool = AtomicBool::new(false);
/// Somebody has called since the look was made due.
static CALLED: AtomicBool = AtomicBool::new(false);
/// Resident bytes after the last time.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Looks at the process a little later, unless that is due already.
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
            // It waits for the allocator's locks.
            let settled = tokio::task::spawn_blocking(move || settle(worth)).await;
            if settled.unwrap_or_default() {
                last = Instant::now();
            }
            if is_quiet {
                break;
            }
        }
        DUE.store(false, Ordering::Release);
        if CALLED.load(Ordering::Acquire) {
            // Between the last look and now.
            settle_soon();
        }
    });
}

/// Which growth is worth the work.
fn worth(is_quiet: bool, since: Duration) -> u64 {
    match is_quiet || since >= LONG {
        true => QUIET_WORTH,
        false => BUSY_WORTH,
    }
}

/// Gives memory back if the process has grown by `worth`; false if it has not.
fn settle(worth: u64) -> bool {
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

/// Bytes of this process in memory; none where /proc does not say.
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
    fn what_was_freed_goes_back() {
        let held: Vec<String> = (0..1_000_000_u32).map(|n| n.to_string()).collect();
        // What stands behind them keeps the heap from shrinking by itself.
        let last = std::hint::black_box(Box::new([1_u8; 64]));
        let full = resident().unwrap();
        drop(held);
        KEPT.store(0, Ordering::Release);
        assert!(settle(worth(false, Duration::ZERO)));
        let after = resident().unwrap();
        assert!(
            after + (16 << 20) < full,
            "{full} bytes before, {after} after"
        );
        assert_eq!(last[0], 1);
    }

    #[test]
    fn little_is_given_back_when_there_is_time() {
        assert_eq!(worth(false, LONG - Duration::from_secs(1)), BUSY_WORTH);
        assert_eq!(worth(false, LONG), QUIET_WORTH);
        assert_eq!(worth(true, Duration::ZERO), QUIET_WORTH);
    }
}
