//! Blocks of host ids: one for each live pod, the least recently used first.
//!
//! Called by: RunPodSandbox (lease), the end of a pod (release), recovery (reserve those of records).
//! Invariants: no two pods have the same block; a block is leased again only after all other free ones.
//! Must not know: how ids get into a container.

use std::collections::{HashSet, VecDeque};
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
    taken: HashSet<u32>,
}

impl Ids {
    /// Blocks of `size` ids from `base` up to the last host id (2^32 - 2).
    pub fn new(base: u32, size: u32) -> Ids {
        let blocks = (u32::MAX - 1 - base) / size.max(1);
        Ids {
            base,
            size,
            blocks,
            state: Mutex::default(),
        }
    }

    /// Leases a block. Errors: all are leased.
    pub fn lease(&self) -> Result<IdRange, Error> {
        let mut state = self.lock();
        while state.fresh < self.blocks {
            let block = state.fresh;
            state.fresh += 1;
            if state.taken.insert(block) {
                return Ok(self.range(block));
            }
        }
        let Some(block) = state.freed.pop_front() else {
            return Err(Error::new(
                Kind::Exhausted,
                format!("all {} blocks of host ids are taken", self.blocks),
            ));
        };
        state.taken.insert(block);
        Ok(self.range(block))
    }

    /// Reserves the block of a record.
    pub fn claim(&self, range: IdRange) {
        if let Some(block) = self.block(range) {
            self.lock().taken.insert(block);
        }
    }

    /// Reserves the block that contains a host id.
    pub fn claim_holding(&self, id: u32) {
        let Some(block) = id.checked_sub(self.base).map(|offset| offset / self.size) else {
            return;
        };
        if block < self.blocks {
            self.lock().taken.insert(block);
        }
    }

    /// Releases a block. One that is not leased is fine.
    pub fn release(&self, range: IdRange) {
        let mut state = self.lock();
        // A block at or above `fresh` was only reserved; it will be leased as a fresh one.
        if let Some(block) = self.block(range)
            && state.taken.remove(&block)
            && block < state.fresh
        {
            state.freed.push_back(block);
        }
    }

    fn range(&self, block: u32) -> IdRange {
        IdRange {
            base: self.base + block * self.size,
            size: self.size,
        }
    }

    /// The number of the block `range`; `None` when the configuration has changed meanwhile.
    fn block(&self, range: IdRange) -> Option<u32> {
        let offset = range.base.checked_sub(self.base)?;
        let fits =
            range.size == self.size && offset % self.size == 0 && offset / self.size < self.blocks;
        fits.then_some(offset / self.size)
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
        Ids::new(u32::MAX - 1 - 4999, 1000)
    }

    #[test]
    fn blocks_do_not_overlap_and_end_below_the_last_id() {
        let ids = four();
        let mut bases: Vec<u32> = (0..4).map(|_| ids.lease().unwrap().base).collect();
        assert_eq!(ids.lease().unwrap_err().kind(), Kind::Exhausted);
        bases.dedup();
        assert_eq!(bases.len(), 4);
        assert!(
            bases
                .iter()
                .all(|base| base.checked_add(1000).is_some_and(|end| end < u32::MAX))
        );
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
    fn a_block_of_another_configuration_is_left_alone() {
        let ids = four();
        ids.claim(IdRange {
            base: 1,
            size: 1000,
        });
        ids.claim(IdRange {
            base: ids.base + 1,
            size: 1000,
        });
        ids.release(IdRange {
            base: 1,
            size: 1000,
        });
        assert_eq!((0..5).filter(|_| ids.lease().is_ok()).count(), 4);
    }
}
