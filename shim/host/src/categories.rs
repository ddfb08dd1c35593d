//! Pairs of SELinux categories: one for each live pod, so that no pod can read the files of another.
//!
//! Called by: RunPodSandbox (lease), CreateContainer and recovery (reserve levels of the kubelet and of records), the
//! end of a pod or container (release).
//! Invariants: no two pods of the node have the same pair unless the kubelet gave it to both, because each daemon
//! leases only pairs of its own share; a free pair is leased again only after the others.
//! Must not know: labels, whether this kernel has SELinux, who has which share.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_spec::id::{ContainerId, PodId};

use super::{Host, linux};
use coracle_lifecycle::{ContainerConfig, Error, Kind, SandboxConfig};

/// Number of shares: as many daemons can lease categories.
pub const CATEGORY_SHARES: u32 = 32;
/// Categories of the policies in distributions: `c0` to `c1023`.
const CATEGORIES: u32 = 1024;

/// The pairs of this daemon.
#[derive(Debug)]
pub struct Categories {
    count: u32,
    /// The first pair of the share, and their number.
    share: (u32, u32),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the next search begins, counted from the first pair of the share.
    next: u32,
    /// The pair of each holder: a pod, or a container with a level of its own.
    held: HashMap<String, u32>,
    /// Number of holders for each pair.
    taken: HashMap<u32, u32>,
}

impl Categories {
    /// The pairs of share `share`, searched from a random one on, so that a daemon that starts again does not begin
    /// with those released last. None without a share.
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

    /// Leases a pair to `holder`; returns the level with it, `s0:c1,c2`. Errors: all pairs are leased.
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

    /// Reserves the pair of a level from a record or the kubelet for `holder`. A level without a pair has no effect.
    pub fn claim(&self, holder: &str, level: &str) {
        if let Some(pair) = self.pair(level) {
            self.lock().hold(holder, pair);
        }
    }

    /// Releases the pair of `holder`, if it has one.
    pub fn release(&self, holder: &str) {
        self.lock().release(holder);
    }

    /// The number of the pair in a level, in any notation; of a range, the upper end counts.
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
            // Three or more categories are not a pair.
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
    /// The SELinux level of a new pod: the requested one, else one with a pair of its own; `None` without SELinux.
    ///
    /// Errors: all pairs are leased.
    pub fn lease_level(
        &self,
        pod: &PodId,
        config: &SandboxConfig,
    ) -> Result<Option<String>, Error> {
        if !linux::has_selinux() {
            return Ok(None);
        }
        let requested = config
            .selinux
            .as_ref()
            .map(|requested| requested.level.as_str());
        match requested.filter(|level| !level.is_empty()) {
            Some(level) => {
                self.categories.claim(pod.as_str(), level);
                Ok(Some(level.to_owned()))
            }
            None => self.categories.lease(pod.as_str()).map(Some),
        }
    }

    /// Reserves the pair of a container with a level of its own.
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

/// The two categories of a pair; pairs with the same `high` are numbered after all with a lower one.
fn categories(pair: u32) -> (u32, u32) {
    let mut high = 1;
    while pairs(high + 1) <= pair {
        high += 1;
    }
    (pair - pairs(high), high)
}

/// Not a secret: without it the search begins at the first pair.
fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
