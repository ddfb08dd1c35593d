//! Memory that many have together: for the output of all ExecSync calls, for what all streaming sessions have received, for
//! the requests of all pods.
//!
//! Called by: the host's ExecSync, for each output stream; [`super::receive`], for each connection; the lifecycle, for each
//! sandbox and container. Invariants: all shares together hold at most the limit, in addition to the free bytes of each and
//! to what was there before ([`Share::take_over`]); nobody waits for memory, so nothing can
//! deadlock; a share, and all shares of a tenant together, grow at most to what remains for others, so that a few greedy
//! calls leave room for new ones and a single one gets half.
//! Must not know: processes, streams, what tenants are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The step by which a share of what comes bit by bit grows. Bytes.
const STEP: usize = 64 << 10;

/// The limit and the bytes in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    total: usize,
    free: usize,
    step: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    tenants: HashMap<Arc<str>, usize>,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// What all shares of `tenant` hold; a share of nobody is alone with the bytes `held`.
    fn of(&self, tenant: Option<&Arc<str>>, held: usize) -> usize {
        tenant.map_or(held, |tenant| {
            self.tenants.get(tenant).copied().unwrap_or(0)
        })
    }

    fn add(&mut self, tenant: Option<&Arc<str>>, more: usize) {
        self.all += more;
        if let Some(tenant) = tenant {
            *self.tenants.entry(Arc::clone(tenant)).or_default() += more;
        }
    }

    fn give_back(&mut self, tenant: Option<&Arc<str>>, less: usize) {
        self.all = self.all.saturating_sub(less);
        let Some(tenant) = tenant else { return };
        if let Some(taken) = self.tenants.get_mut(tenant) {
            *taken = taken.saturating_sub(less);
            if *taken == 0 {
                self.tenants.remove(tenant);
            }
        }
    }
}

impl Budget {
    /// `total` bytes for all, beside the `free` bytes that each may hold regardless of the others.
    #[must_use]
    pub fn new(total: usize, free: usize) -> Self {
        Self::with_step(total, free, STEP)
    }

    /// `total` bytes for all, of which every byte counts.
    #[must_use]
    pub fn exact(total: usize) -> Self {
        Self::with_step(total, 0, 1)
    }

    fn with_step(total: usize, free: usize, step: usize) -> Self {
        Self(Arc::new(Account {
            total,
            free,
            step,
            taken: Mutex::default(),
        }))
    }

    /// What all shares hold, and those of `tenant` alone. Bytes.
    #[must_use]
    pub fn taken(&self, tenant: &str) -> (usize, usize) {
        let taken = self.0.lock();
        let own = taken.tenants.get(tenant).copied().unwrap_or(0);
        (taken.all, own)
    }

    /// Bytes for all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.total
    }

    /// An empty share, of nobody.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            tenant: None,
            held: 0,
        }
    }

    /// An empty share of `tenant`, whose shares together hold no more than remains for all others.
    #[must_use]
    pub fn share_of(&self, tenant: &str) -> Share {
        Share {
            budget: self.clone(),
            tenant: Some(tenant.into()),
            held: 0,
        }
    }
}

/// The bytes of one of them, released when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    tenant: Option<Arc<str>>,
    held: usize,
}

impl Share {
    /// Whether `bytes` in all may be held; takes what that needs.
    pub fn covers(&mut self, bytes: usize) -> bool {
        let needed = self.needed(bytes);
        let Some(more) = needed.checked_sub(self.held).filter(|more| *more > 0) else {
            return true;
        };
        let (account, tenant) = (&self.budget.0, self.tenant.as_ref());
        let mut taken = account.lock();
        let all = taken.all.saturating_add(more);
        let own = taken.of(tenant, self.held).saturating_add(more);
        let is_granted = account
            .total
            .checked_sub(all)
            .is_some_and(|free| own <= free);
        if is_granted {
            taken.add(tenant, more);
            self.held = needed;
        }
        is_granted
    }

    /// Holds at least `bytes` in all, whatever is left: they are in memory already.
    pub fn take_over(&mut self, bytes: usize) {
        let more = self.needed(bytes).saturating_sub(self.held);
        let mut taken = self.budget.0.lock();
        taken.add(self.tenant.as_ref(), more);
        self.held += more;
    }

    /// Gives back what `bytes` in all do not need.
    pub fn shrink(&mut self, bytes: usize) {
        let needed = self.needed(bytes);
        if let Some(less) = self.held.checked_sub(needed).filter(|less| *less > 0) {
            self.give_back(less);
            self.held = needed;
        }
    }

    fn give_back(&self, less: usize) {
        let mut taken = self.budget.0.lock();
        taken.give_back(self.tenant.as_ref(), less);
    }

    fn needed(&self, bytes: usize) -> usize {
        let shared = bytes.saturating_sub(self.budget.0.free);
        shared.next_multiple_of(self.budget.0.step)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.held > 0 {
            self.give_back(self.held);
        }
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
        assert_eq!(budget.0.lock().all, 0);
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
        let taken = budget.0.lock().all;
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
        assert_eq!(budget.0.lock().all, 0);
    }

    #[test]
    fn a_tenant_with_many_shares_leaves_half_for_others() {
        let budget = Budget::new(MIB, FREE_BYTES);
        let mut greedy: Vec<_> = (0..100).map(|_| budget.share_of("greedy")).collect();
        let granted = greedy
            .iter_mut()
            .filter_map(|one| one.covers(STEP).then_some(STEP));
        assert_eq!(granted.sum::<usize>(), MIB / 2);
        assert_eq!(fill(&mut budget.share_of("other"), MIB), MIB / 4);
        assert!(!budget.share_of("greedy").covers(STEP));
        drop(greedy);
        assert!(budget.share_of("greedy").covers(MIB / 2));
        let taken = budget.0.lock();
        assert!(taken.all == 0 && taken.tenants.is_empty());
    }

    #[test]
    fn what_was_there_before_counts_to_the_byte_and_is_never_refused() {
        let budget = Budget::exact(100);
        let mut found = budget.share_of("a");
        found.take_over(130);
        assert_eq!(budget.taken("a"), (130, 130));
        assert!(!budget.share_of("b").covers(1));
        drop(found);
        let mut one = budget.share_of("a");
        assert!(!one.covers(51) && one.covers(50));
        assert!(budget.share_of("b").covers(25));
        drop(one);
        assert_eq!(budget.taken("a"), (0, 0));
    }
}
