//! Keeps the daemon as small as what it holds: memory that a large request took goes back to the kernel.
//!
//! Called by `cri` with every call. A million small texts, freed, leave the allocator with pages that it keeps for itself:
//! 17 MiB of labels cost 100 MiB until the daemon ends.
//! Invariants: at most one look every five seconds, none while nobody calls; pages are given back only when the process
//! has grown since the last time. Not here: how much a request may hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use coracle_runtime::memory::give_memory_back;

/// How long after a call the process is looked at.
const SETTLE: Duration = Duration::from_secs(5);
/// Growth since the last time that is worth the work. Bytes.
const WORTH: u64 = 4 << 20;

/// A look is due.
static DUE: AtomicBool = AtomicBool::new(false);
/// Resident bytes after the last time.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Looks at the process a little later, unless that is due already.
pub fn settle_soon() {
    if DUE.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::spawn(async {
        tokio::time::sleep(SETTLE).await;
        DUE.store(false, Ordering::Release);
        // It waits for the allocator's locks.
        let _ = tokio::task::spawn_blocking(settle).await;
    });
}

fn settle() {
    let Some(resident) = resident() else { return };
    let kept = KEPT.load(Ordering::Acquire);
    if resident < kept + WORTH {
        KEPT.fetch_min(resident, Ordering::AcqRel);
        return;
    }
    give_memory_back();
    if let Some(resident) = self::resident() {
        KEPT.store(resident, Ordering::Release);
    }
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
        settle();
        let after = resident().unwrap();
        assert!(
            after + (16 << 20) < full,
            "{full} bytes before, {after} after"
        );
        assert_eq!(last[0], 1);
    }
}
