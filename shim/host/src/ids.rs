//! Blocks of host ids: one for each live pod, the least recently used first; and the ranges that the kubelet gives pods
//! with a user namespace of their own.
//!
//! Called by: RunPodSandbox (lease, give), the end of a pod (release, take back), recovery (reserve those of records).
//! Invariants: no two pods have an id in common, also where pods live that another configuration has given other ranges;
//! two sandboxes of one pod may, as the kubelet gives both the same; a block is leased again only after all other free
//! ones; nothing here looks at all pods.
//! Must not know: how ids get into a container.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_lifecycle::{Error, Kind};
use coracle_spec::IdRange;
use coracle_spec::id::PodId;

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
    held: BTreeSet<(u32, u32)>,
    /// How many of these have an id in a block.
    users: HashMap<u32, u32>,
    /// What the kubelet gave, by the first id. None overlaps another.
    given: BTreeMap<u32, Given>,
}

/// A range that the kubelet gave a pod.
#[derive(Debug)]
struct Given {
    size: u32,
    /// The pod's.
    uid: String,
    sandboxes: BTreeSet<PodId>,
}

impl State {
    /// Adds a range that has ids in `blocks`.
    fn hold(&mut self, range: IdRange, blocks: Range<u32>) {
        if self.held.insert((range.base, range.size)) {
            self.occupy(blocks);
        }
    }

    fn occupy(&mut self, blocks: Range<u32>) {
        for block in blocks {
            *self.users.entry(block).or_default() += 1;
        }
    }

    /// What has an id of `range`, other than another sandbox of pod `uid` with the same range.
    fn overlapping(&self, range: IdRange, uid: &str) -> Option<(IdRange, String)> {
        // As none overlaps another, only the last one that begins before the end of `range` can have an id of it.
        let last = self.given.range(..=last_of(range)).next_back();
        let given = last.map(|(base, given)| {
            let size = given.size;
            (IdRange { base: *base, size }, given)
        });
        if let Some((other, given)) = given
            && end(other) > u64::from(range.base)
            && !(other == range && given.uid == uid)
        {
            return Some((other, format!("pod {} has", given.uid)));
        }
        let last = self.held.range(..=(last_of(range), u32::MAX)).next_back();
        let other = last.map(|(base, size)| IdRange {
            base: *base,
            size: *size,
        });
        let other = other.filter(|other| end(*other) > u64::from(range.base));
        other.map(|other| (other, "another pod has".to_owned()))
    }

    /// Adds what the kubelet gave; nothing else has an id of it.
    fn keep(&mut self, pod: &PodId, uid: &str, range: IdRange, blocks: Range<u32>) {
        if !self.given.contains_key(&range.base) {
            self.occupy(blocks);
        }
        let given = self.given.entry(range.base).or_insert_with(|| Given {
            size: range.size,
            uid: uid.to_owned(),
            sandboxes: BTreeSet::new(),
        });
        given.sandboxes.insert(pod.clone());
    }

    /// Removes it.
    fn free(&mut self, range: IdRange, blocks: Range<u32>) {
        if self.held.remove(&(range.base, range.size)) {
            self.vacate(blocks);
        }
    }

    /// A block without users at or above `fresh` was only reserved; it will be leased as a fresh one.
    fn vacate(&mut self, blocks: Range<u32>) {
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

    /// Takes the range that the kubelet gives pod `uid`, for its sandbox `pod`.
    ///
    /// Errors: it has an id of a pod's, or one that a pod of ours may get; both ranges.
    pub fn give(&self, pod: &PodId, uid: &str, range: IdRange) -> Result<(), Error> {
        let mut state = self.lock();
        let own = self.blocks_of(range);
        let pool = IdRange {
            base: self.base,
            size: self.blocks * self.size,
        };
        let other = match own.is_empty() {
            true => state.overlapping(range, uid),
            false => Some((
                pool,
                "sandbox.id_base, id_count and max_pods set aside".into(),
            )),
        };
        if let Some((other, whose)) = other {
            let why = format!(
                "linux.security_context.namespace_options.userns_options gives pod {uid} the host ids {}, and {whose} {}; \
                 have the kubelet give ids that nobody else has (the range of its user in /etc/subuid and /etc/subgid)",
                shown(range),
                shown(other)
            );
            return Err(Error::new(Kind::Invalid, why));
        }
        state.keep(pod, uid, range, own);
        Ok(())
    }

    /// As [`Ids::give`], for a record: its sandbox has the range already. Every block that has one of its ids is reserved.
    pub fn adopt(&self, pod: &PodId, uid: &str, range: IdRange) {
        let mut state = self.lock();
        let blocks = self.blocks_of(range);
        match state.overlapping(range, uid) {
            None => state.keep(pod, uid, range, blocks),
            Some((other, whose)) => {
                let (own, other) = (shown(range), shown(other));
                tracing::warn!(pod = %pod, "it has the host ids {own}, and {whose} {other}");
                state.hold(range, blocks);
            }
        }
    }

    /// Takes back what sandbox `pod` was given. What it was not given is fine.
    pub fn take_back(&self, pod: &PodId, range: IdRange) {
        let mut state = self.lock();
        let given = state.given.get_mut(&range.base);
        let is_last = given.and_then(|given| {
            let is_its_own = given.size == range.size && given.sandboxes.remove(pod);
            is_its_own.then_some(given.sandboxes.is_empty())
        });
        match is_last {
            Some(true) => {
                state.given.remove(&range.base);
                state.vacate(self.blocks_of(range));
            }
            Some(false) => {}
            None => state.free(range, self.blocks_of(range)),
        }
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

/// The first id behind a range.
fn end(range: IdRange) -> u64 {
    u64::from(range.base) + u64::from(range.size)
}

/// The last id of a range.
fn last_of(range: IdRange) -> u32 {
    range.base.saturating_add(range.size.saturating_sub(1))
}

fn shown(range: IdRange) -> String {
    format!("{} to {}", range.base, last_of(range))
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

    #[test]
    fn what_the_kubelet_gives_is_refused_where_anybody_else_has_a_part_of_it() {
        let range = |base, size| IdRange { base, size };
        let ids = four();
        let pods: Vec<PodId> = (0..4).map(|_| PodId::random().unwrap()).collect();
        let first = range(131_072, 65_536);
        ids.give(&pods[0], "one", first).unwrap();
        // The kubelet gives a pod's next sandbox what the one before it still has.
        ids.give(&pods[1], "one", first).unwrap();
        ids.give(&pods[2], "two", range(65_536, 65_536)).unwrap();
        ids.give(&pods[3], "three", range(196_608, 65_536)).unwrap();
        // Of a pod that another configuration has started.
        ids.claim(range(500_000, 1000));
        let own = ids.base;
        for (uid, given, facts) in [
            ("other", first, "pod one has 131072 to 196607"),
            ("one", range(131_072, 100), "pod one has 131072 to 196607"),
            ("other", range(196_607, 1), "pod one has 131072 to 196607"),
            (
                "other",
                range(0, u32::MAX - 5000),
                "another pod has 500000 to 500999",
            ),
            (
                "other",
                range(262_143, 65_536),
                "pod three has 196608 to 262143",
            ),
            (
                "other",
                range(499_999, 2),
                "another pod has 500000 to 500999",
            ),
            ("other", range(own - 1, 2), "sandbox.id_base"),
            ("other", range(own + 3999, 1), "sandbox.id_base"),
        ] {
            let refused = ids.give(&PodId::random().unwrap(), uid, given);
            let text = refused.expect_err(&format!("{uid} {given:?}")).to_string();
            let both = text.contains(facts) || given.size > 100_000;
            assert!(both && text.contains(&shown(given)), "{text}");
        }
        ids.take_back(&pods[0], first);
        assert!(
            ids.give(&pods[0], "other", first).is_err(),
            "one still has it"
        );
        ids.take_back(&pods[1], first);
        ids.give(&pods[0], "other", first).unwrap();
        ids.release(range(500_000, 1000));
        ids.give(&pods[1], "other", range(500_000, 1000)).unwrap();
    }

    #[test]
    fn blocks_are_not_leased_while_a_pod_has_ids_of_them_that_the_kubelet_gave() {
        let ids = four();
        let (pod, next) = (PodId::random().unwrap(), PodId::random().unwrap());
        let given = IdRange {
            base: ids.base + 999,
            size: 2,
        };
        // Of a build that did not compare them.
        ids.adopt(&pod, "one", given);
        ids.adopt(&pod, "one", given);
        ids.adopt(&next, "one", given);
        assert_eq!((0..5).filter(|_| ids.lease().is_ok()).count(), 2);
        ids.take_back(&pod, given);
        assert!(
            ids.lease().is_err(),
            "the other sandbox has ids of both blocks"
        );
        ids.take_back(&next, given);
        assert_eq!((0..5).filter(|_| ids.lease().is_ok()).count(), 2);
    }
}
