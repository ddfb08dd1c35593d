//! What all sessions of the node share: how many there may be, and how much of that one owner may have.
//!
//! Called by: [`super::http`], for each session, and [`super::forward`], for each forwarded connection.
//! Invariants: a tenant gets at most as many as remain for all others, so that a single one gets half and there is always
//! room for the next; a target gets at most a fixed number; nobody waits for a share.
//! Must not know: what tenants and targets are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose session it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Who shares nothing with others: a Kubernetes namespace.
    pub tenant: String,
    /// What the session reaches: a pod.
    pub target: String,
}

/// A number of things, in use or free; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Account>);

#[derive(Debug)]
struct Account {
    total: usize,
    of_target: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    tenants: HashMap<String, usize>,
    targets: HashMap<String, usize>,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    /// `total` of them, of which a target may have `of_target`.
    pub fn new(total: usize, of_target: usize) -> Self {
        Self(Arc::new(Account {
            total,
            of_target,
            taken: Mutex::default(),
        }))
    }

    /// One for `owner`, released when it is dropped; `None` if it has its part.
    pub fn take(&self, owner: &Owner) -> Option<Share> {
        let mut taken = self.0.lock();
        let of =
            |counts: &HashMap<String, usize>, name: &str| counts.get(name).map_or(1, |n| n + 1);
        let tenant = of(&taken.tenants, &owner.tenant);
        let target = of(&taken.targets, &owner.target);
        let free = self.0.total.checked_sub(taken.all + 1)?;
        if tenant > free || target > self.0.of_target {
            return None;
        }
        taken.all += 1;
        taken.tenants.insert(owner.tenant.clone(), tenant);
        taken.targets.insert(owner.target.clone(), target);
        Some(Share {
            shares: self.clone(),
            owner: owner.clone(),
        })
    }
}

/// One of them.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    owner: Owner,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.0.lock();
        taken.all -= 1;
        give_back(&mut taken.tenants, &self.owner.tenant);
        give_back(&mut taken.targets, &self.owner.target);
    }
}

fn give_back(counts: &mut HashMap<String, usize>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn owner(tenant: &str, target: &str) -> Owner {
        Owner {
            tenant: tenant.to_owned(),
            target: target.to_owned(),
        }
    }

    /// All that `owners` get in turns.
    fn all(shares: &Shares, owners: &[Owner]) -> Vec<Share> {
        let mut got = Vec::new();
        loop {
            let before = got.len();
            got.extend(owners.iter().filter_map(|owner| shares.take(owner)));
            if got.len() == before {
                return got;
            }
        }
    }

    #[test]
    fn a_tenant_with_any_number_of_targets_leaves_room_for_the_next_one() {
        let shares = Shares::new(64, 16);
        let many: Vec<Owner> = (0..10).map(|n| owner("greedy", &format!("{n}"))).collect();
        let greedy = all(&shares, &many);
        assert_eq!(greedy.len(), 32);
        let next = all(&shares, &[owner("next", "a")]);
        assert_eq!(next.len(), 16, "as much as remains, and as a target may");
        assert!(
            shares.take(&owner("third", "a")).is_none(),
            "targets have unique names"
        );
        assert!(shares.take(&owner("third", "b")).is_some());
        drop((greedy, next));
        assert!(shares.0.lock().tenants.is_empty() && shares.0.lock().targets.is_empty());
        assert_eq!(shares.0.lock().all, 0);
    }

    #[test]
    fn a_target_has_no_more_than_its_number() {
        let shares = Shares::new(1000, 16);
        let one = owner("a", "pod");
        let got = all(&shares, std::slice::from_ref(&one));
        assert_eq!(got.len(), 16);
        assert!(shares.take(&owner("a", "other")).is_some());
        drop(got);
        assert!(shares.take(&one).is_some());
    }
}
