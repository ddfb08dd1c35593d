//! Blocks of host ids: one for each live pod, the least recently used first.
//!
//! Called by: RunPodSandbox (lease), the end of a pod (release), recovery (reserve those of records).
//! Invariants: no two pods have an id in common, also where pods live that another configuration has given other ranges;
//! a block is leased again only after all other free ones.
//! Must not know: how ids get into a container.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_spec::IdRange;

use coracle_lifecycle::{Error, Kind};

/// The blocks of this node.
#[derive(Debug)]
pub struct Ids {
    base: u32,
    size: u32,
    blocks: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks from here on were never leased by this daemon or a pod that it found.
    fresh: u32,
    /// Released blocks, the oldest first.
    freed: VecDeque<u32>,
    /// What is leased or reserved: base and size. Those of another configuration lie across the blocks.
    held: HashSet<(u32, u32)>,
    /// How many of these have an id in a block.
    users: HashMap<u32, u32>,
}

impl State {
    /// Adds a range that has ids in `blocks`.
    fn hold(&mut self, range: IdRange, blocks: Range<u32>) {
        if self.held.insert((range.base, range.size)) {
            for block in blocks {
                *self.users.entry(block).or_default() += 1;
            }
        }
    }

    /// Removes it. A block without users at or above `fresh` was only reserved; it will be leased as a fresh one.
    fn free(&mut self, range: IdRange, blocks: Range<u32>) {
        if !self.held.remove(&(range.base, range.size)) {
            return;
        }
        for block in blocks {
            let Some(users) = self.users.get_mut(&block) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                self.users.remove(&block);
                if block < self.fresh {
                    self.freed.push_back(block);
                }
            }
        }
    }

    /// The next block that nobody uses.
    fn next(&mut self, blocks: u32) -> Option<u32> {
        while self.fresh < blocks {
            self.fresh += 1;
            if !self.users.contains_key(&(self.fresh - 1)) {
                return Some(self.fresh - 1);
            }
        }
        // One that was reserved after its release is released again.
        while let Some(block) = self.freed.pop_front() {
            if !self.users.contains_key(&block) {
                return Some(block);
            }
        }
        None
    }
}

impl Ids {
    /// `pods` blocks of `size` ids from `base`, as far as they end at the last host id (2^32 - 2).
    pub fn new(base: u32, size: u32, pods: u32) -> Ids {
        let size = size.max(1);
        Ids {
            base,
            size,
            blocks: pods.min((u32::MAX - base) / size),
            state: Mutex::default(),
        }
    }

    /// Leases a block. Errors: all are leased.
    pub fn lease(&self) -> Result<IdRange, Error> {
        let mut state = self.lock();
        let Some(block) = state.next(self.blocks) else {
            let why = format!(
                "all {} blocks of host ids are taken (sandbox.id_base, id_count, max_pods)",
                self.blocks
            );
            return Err(Error::new(Kind::Exhausted, why));
        };
        let range = self.range(block);
        state.hold(range, block..block + 1);
        Ok(range)
    }

    /// Reserves the range of a record: every block that has one of its ids.
    pub fn claim(&self, range: IdRange) {
        self.lock().hold(range, self.blocks_of(range));
    }

    /// Reserves the block that contains a host id.
    pub fn claim_holding(&self, id: u32) {
        for block in self.blocks_of(IdRange { base: id, size: 1 }) {
            self.claim(self.range(block));
        }
    }

    /// Releases a range. One that is neither leased nor reserved is fine.
    pub fn release(&self, range: IdRange) {
        self.lock().free(range, self.blocks_of(range));
    }

    fn range(&self, block: u32) -> IdRange {
        IdRange {
            base: self.base + block * self.size,
            size: self.size,
        }
    }

    /// The blocks that have an id of `range`.
    fn blocks_of(&self, range: IdRange) -> Range<u32> {
        let below = |id: u64| id.saturating_sub(u64::from(self.base));
        let (first, end) = (
            u64::from(range.base),
            u64::from(range.base) + u64::from(range.size),
        );
        let (size, most) = (u64::from(self.size), u64::from(self.blocks));
        // Both are at most `blocks`.
        (below(first) / size).min(most) as u32..below(end).div_ceil(size).min(most) as u32
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn four() -> Ids {
        // 4 * 1000 + 999 ids fit above this base.
        Ids::new(u32::MAX - 4999, 1000, 100)
    }

    #[test]
    fn blocks_do_not_overlap_and_end_below_the_last_id() {
        let ids = four();
        let mut bases: Vec<u32> = (0..4).map(|_| ids.lease().unwrap().base).collect();
        assert_eq!(ids.lease().unwrap_err().kind(), Kind::Exhausted);
        bases.dedup();
        assert_eq!(bases.len(), 4);
        assert!(bases.iter().all(|base| base.checked_add(1000).is_some()));
    }

    #[test]
    fn no_more_pods_than_configured_have_ids() {
        let ids = Ids::new(65_536, 65_536, 2);
        let leased = [(); 2].map(|()| ids.lease().unwrap().base);
        assert_eq!(leased, [65_536, 131_072]);
        assert_eq!(ids.lease().unwrap_err().kind(), Kind::Exhausted);
    }

    #[test]
    fn the_block_free_the_longest_comes_first() {
        let ids = four();
        let all: Vec<IdRange> = (0..4).map(|_| ids.lease().unwrap()).collect();
        for index in [2, 0, 3] {
            ids.release(all[index]);
        }
        let again: Vec<u32> = (0..3).map(|_| ids.lease().unwrap().base).collect();
        assert_eq!(again, [all[2].base, all[0].base, all[3].base]);
    }

    #[test]
    fn a_claimed_block_is_not_leased_until_released() {
        let ids = four();
        let second = IdRange {
            base: ids.base + 1000,
            size: 1000,
        };
        ids.claim(second);
        let leased: Vec<u32> = (0..3).map(|_| ids.lease().unwrap().base).collect();
        assert!(!leased.contains(&second.base));
        assert!(ids.lease().is_err());
        ids.release(second);
        ids.release(second);
        assert_eq!(ids.lease().unwrap(), second);
        assert!(ids.lease().is_err(), "one release gave two leases");
    }

    #[test]
    fn no_pod_gets_ids_of_one_that_another_configuration_has_started() {
        let range = |base, size| IdRange { base, size };
        let base = four().base;
        for (other, untouched) in [
            (range(base + 1, 1000), vec![2, 3]),
            (range(base, 2000), vec![2, 3]),
            (range(base + 1000, 1), vec![0, 2, 3]),
            (range(base - 500, 501), vec![1, 2, 3]),
            (range(base - 500, 500), vec![0, 1, 2, 3]),
            (range(base + 3999, 1000), vec![0, 1, 2]),
            (range(base + 4000, 999), vec![0, 1, 2, 3]),
            (range(base - 1, 4002), vec![]),
            (range(0, 1000), vec![0, 1, 2, 3]),
        ] {
            let ids = four();
            ids.claim(other);
            let leases = (0..5).filter_map(|_| ids.lease().ok());
            let leased: Vec<u32> = leases.map(|leased| (leased.base - base) / 1000).collect();
            assert_eq!(leased, untouched, "{other:?}");
            ids.release(other);
            ids.release(other);
            let rest = (0..5).filter(|_| ids.lease().is_ok()).count();
            assert_eq!(rest + untouched.len(), 4, "{other:?}");
        }
    }

    #[test]
    fn a_block_that_two_pods_have_a_part_of_is_free_after_both() {
        let ids = four();
        let [one, two] = [100, 600].map(|from| IdRange {
            base: ids.base + from,
            size: 500,
        });
        ids.claim(one);
        ids.claim(two);
        assert_eq!((0..5).filter(|_| ids.lease().is_ok()).count(), 2);
        ids.release(one);
        assert!(ids.lease().is_err(), "the other pod has ids of both blocks");
        ids.release(two);
        assert_eq!((0..5).filter(|_| ids.lease().is_ok()).count(), 2);
    }
}
