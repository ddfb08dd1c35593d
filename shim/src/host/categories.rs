//! Pairs of SELinux categories: one a living pod, so that no pod reads what another has written.
//!
//! Called by: RunPodSandbox (lease), CreateContainer and recovery (claim what the kubelet gave and what records hold),
//! the end of a pod or container (release).
//! Invariants: no two pods of the node hold the same pair unless the kubelet gave it to both, for each daemon hands out
//! pairs of its own share alone; a free pair is not handed out again before the others have been.
//! Not here: labels, whether this kernel has SELinux, who has which share.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_spec::id::{ContainerId, PodId};

use super::{Host, linux};
use coracle_lifecycle::{ContainerConfig, Error, Kind, SandboxConfig};

/// Into how many shares the pairs of a node are divided: as many daemons can hand out categories.
pub const CATEGORY_SHARES: u32 = 32;
/// Categories of the policies that distributions ship: `c0` to `c1023`.
const CATEGORIES: u32 = 1024;

/// The pairs of this daemon.
#[derive(Debug)]
pub struct Categories {
    count: u32,
    /// The first pair that is handed out, and how many are.
    share: (u32, u32),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the next search begins, counted from the first pair of the share.
    next: u32,
    /// The pair of each holder: a pod, or a container with a level of its own.
    held: HashMap<String, u32>,
    /// How many hold a pair.
    taken: HashMap<u32, u32>,
}

impl Categories {
    /// The pairs of share `share` of the node's, from a random one on: a daemon that starts again does not begin with
    /// those that were given back last. None without a share.
    pub fn new(share: Option<u32>) -> Categories {
        let size = pairs(CATEGORIES) / CATEGORY_SHARES;
        let share = share.map_or((0, 0), |number| (number * size, size));
        Self::of(CATEGORIES, share, random())
    }

    fn of(count: u32, share: (u32, u32), first: u32) -> Categories {
        let state = State {
            next: first % share.1.max(1),
            held: HashMap::new(),
            taken: HashMap::new(),
        };
        Categories {
            count,
            share,
            state: Mutex::new(state),
        }
    }

    /// Leases a pair to `holder`; gives the level that has it, `s0:c1,c2`. Errors: all are taken.
    pub fn lease(&self, holder: &str) -> Result<String, Error> {
        let mut state = self.lock();
        let (first, count) = self.share;
        for _ in 0..count {
            let pair = first + state.next;
            state.next = (state.next + 1) % count;
            if !state.taken.contains_key(&pair) {
                state.hold(holder, pair);
                let (low, high) = categories(pair);
                return Ok(format!("s0:c{low},c{high}"));
            }
        }
        let text = match count {
            0 => format!(
                "all {CATEGORY_SHARES} shares of SELinux categories are held by other daemons of this node"
            ),
            _ => format!("all {count} pairs of SELinux categories of this daemon are taken"),
        };
        Err(Error::new(Kind::Exhausted, text))
    }

    /// Takes the pair of a level that a record holds or the kubelet gave, so that no pod is handed it while `holder` has
    /// it. A level that is not a pair is nothing to take.
    pub fn claim(&self, holder: &str, level: &str) {
        if let Some(pair) = self.pair(level) {
            self.lock().hold(holder, pair);
        }
    }

    /// Gives back what `holder` has, if it has a pair.
    pub fn release(&self, holder: &str) {
        self.lock().release(holder);
    }

    /// The number of the pair that a level is, in any of its notations; of a range, the upper end counts.
    fn pair(&self, level: &str) -> Option<u32> {
        let upper = level.rsplit('-').next()?;
        let number = |text: &str| -> Option<u32> {
            let number = text.strip_prefix('c')?.parse().ok()?;
            (number < self.count).then_some(number)
        };
        let mut found = BTreeSet::new();
        for part in upper.strip_prefix("s0:")?.split(',') {
            let (low, high) = part.split_once('.').unwrap_or((part, part));
            let (low, high) = (number(low)?, number(high)?);
            // Three are no pair, however many more follow.
            found.extend((low..=high).take(3));
        }
        let found: Vec<u32> = found.into_iter().collect();
        match found[..] {
            [low, high] => Some(pairs(high) + low),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hold(&mut self, holder: &str, pair: u32) {
        self.release(holder);
        self.held.insert(holder.to_owned(), pair);
        *self.taken.entry(pair).or_default() += 1;
    }

    fn release(&mut self, holder: &str) {
        let Some(pair) = self.held.remove(holder) else {
            return;
        };
        if let Some(holders) = self.taken.get_mut(&pair) {
            *holders -= 1;
            if *holders == 0 {
                self.taken.remove(&pair);
            }
        }
    }
}

impl Host {
    /// The SELinux level of a new pod: what it asks for, else one with a pair of its own; none without SELinux.
    ///
    /// Errors: all pairs are taken.
    pub fn lease_level(
        &self,
        pod: &PodId,
        config: &SandboxConfig,
    ) -> Result<Option<String>, Error> {
        if !linux::has_selinux() {
            return Ok(None);
        }
        let asked = config.selinux.as_ref().map(|asked| asked.level.as_str());
        match asked.filter(|level| !level.is_empty()) {
            Some(level) => {
                self.categories.claim(pod.as_str(), level);
                Ok(Some(level.to_owned()))
            }
            None => self.categories.lease(pod.as_str()).map(Some),
        }
    }

    /// Takes the pair of a container that has a level of its own, so that no pod is handed it.
    pub fn claim_own_level(&self, id: &ContainerId, config: &ContainerConfig) {
        let own = config.security.selinux.as_ref().map(|own| &own.level);
        if let Some(level) = own.filter(|level| !level.is_empty())
            && linux::has_selinux()
        {
            self.categories.claim(id.as_str(), level);
        }
    }
}

fn pairs(count: u32) -> u32 {
    count * count.saturating_sub(1) / 2
}

/// The two categories of a pair: those with `high` are numbered after all below it.
fn categories(pair: u32) -> (u32, u32) {
    let mut high = 1;
    while pairs(high + 1) <= pair {
        high += 1;
    }
    (pair - pairs(high), high)
}

/// Nothing secret: without it the search begins at the first pair.
fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
