//! Memory that many have together: for the output of all ExecSync calls, for what all streaming sessions have received.
//!
//! Called by: the host's ExecSync, for each output stream; [`super::receive`], for each connection. Invariants: all shares
//! together hold at most the limit, in addition to the free bytes of each; nobody waits for memory, so nothing can deadlock; a share grows at most
//! to what remains for others, so that a few greedy calls leave room for new ones and a single one gets half.
//! Must not know: processes, streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The step by which a share grows. Bytes.
const STEP: usize = 64 << 10;

/// The limit and the bytes in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    total: usize,
    free: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// `total` bytes for all, beside the `free` bytes that each may hold regardless of the others.
    #[must_use]
    pub fn new(total: usize, free: usize) -> Self {
        Self(Arc::new(Account {
            total,
            free,
            taken: AtomicUsize::new(0),
        }))
    }

    /// Bytes for all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.total
    }

    /// An empty share.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            held: 0,
        }
    }
}

/// The bytes of one of them, released when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: usize,
}

impl Share {
    /// Whether `bytes` in all may be held; takes what that needs.
    pub fn covers(&mut self, bytes: usize) -> bool {
        let needed = self.needed(bytes);
        let Some(more) = needed.checked_sub(self.held).filter(|more| *more > 0) else {
            return true;
        };
        let account = &self.budget.0;
        let grant = |taken: usize| {
            let taken = taken.checked_add(more)?;
            let free = account.total.checked_sub(taken)?;
            (needed <= free).then_some(taken)
        };
        let granted = account
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant);
        if granted.is_ok() {
            self.held = needed;
        }
        granted.is_ok()
    }

    /// Gives back what `bytes` in all do not need.
    pub fn shrink(&mut self, bytes: usize) {
        let needed = self.needed(bytes);
        if let Some(less) = self.held.checked_sub(needed).filter(|less| *less > 0) {
            self.budget.0.taken.fetch_sub(less, Ordering::Relaxed);
            self.held = needed;
        }
    }

    fn needed(&self, bytes: usize) -> usize {
        let shared = bytes.saturating_sub(self.budget.0.free);
        shared.next_multiple_of(STEP)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.taken.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const FREE_BYTES: usize = 16 << 10;

    /// Grows step by step as output comes; returns how far it got.
    fn fill(share: &mut Share, limit: usize) -> usize {
        let mut kept = 0;
        while kept < limit && share.covers(kept + STEP) {
            kept += STEP;
        }
        kept
    }

    #[test]
    fn a_single_call_gets_both_streams_whole() {
        let budget = Budget::new(64 * MIB, FREE_BYTES);
        let (mut out, mut err) = (budget.share(), budget.share());
        assert_eq!(fill(&mut out, 16 * MIB), 16 * MIB);
        assert_eq!(fill(&mut err, 16 * MIB), 16 * MIB);
        drop((out, err));
        assert_eq!(budget.0.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_together_stay_within_the_total_and_leave_room_for_the_next() {
        let budget = Budget::new(64 * MIB, FREE_BYTES);
        let mut shares: Vec<_> = (0..200).map(|_| budget.share()).collect();
        let mut kept: Vec<usize> = shares.iter().map(|_| 0).collect();
        // In turns, as if output came from all.
        for _ in 0..512 {
            for (share, kept) in shares.iter_mut().zip(&mut kept) {
                if share.covers(*kept + STEP) {
                    *kept += STEP;
                }
            }
        }
        let taken = budget.0.taken.load(Ordering::Relaxed);
        assert!(taken <= 64 * MIB, "{taken}");
        let (least, most) = (kept.iter().min(), kept.iter().max());
        assert!(
            most <= least.map(|least| least + 2 * STEP).as_ref(),
            "{kept:?}"
        );
        assert!(fill(&mut budget.share(), 16 * MIB) >= STEP);
        assert!(budget.share().covers(FREE_BYTES));
    }

    #[test]
    fn free_bytes_are_available_when_the_budget_is_spent() {
        let budget = Budget::new(0, FREE_BYTES);
        let mut share = budget.share();
        assert!(share.covers(FREE_BYTES) && !share.covers(FREE_BYTES + 1));
    }

    #[test]
    fn what_is_given_back_is_there_for_others() {
        let budget = Budget::new(MIB, FREE_BYTES);
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.covers(MIB / 2) && !two.covers(MIB / 2));
        one.shrink(MIB / 4);
        assert!(two.covers(MIB / 4));
        one.shrink(0);
        two.shrink(0);
        assert_eq!(budget.0.taken.load(Ordering::Relaxed), 0);
    }
}
