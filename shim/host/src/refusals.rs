//! How many packets of pods their egress lists have refused, for metrics.
//!
//! Called by: the lifecycle, for scrapes; the effects on one pod, when its rules are installed and before they are gone. Calls:
//! the counters of the kernel. Invariants: a scrape reads for [`LIMIT`] at most, those pods first that were read longest ago; what a
//! pod had refused before this daemon's start is not counted; no lock is held while the kernel answers.
//! Must not know: names of series, what a list says. Refusals by name, which a Wasm instance makes in process, reach nobody.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_lifecycle::PodRecord;
use coracle_network::{self as network, egress};
use coracle_spec::egress::Egress;
use coracle_spec::id::PodId;

use super::Host;

/// How long a scrape may read counters: some thousand pods.
const LIMIT: Duration = Duration::from_millis(100);
/// How many more pods than exist are known before those that are gone are dropped.
const SLACK: usize = 256;

/// The refusals of all pods under a list.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    total: u64,
    /// What each pod had refused when it was read last.
    known: BTreeMap<PodId, u64>,
    /// The pod that was read last.
    last: Option<PodId>,
}

impl Refusals {
    /// The rules of `pod` are new: they have refused nothing.
    fn begin(&self, pod: &PodId) {
        self.lock().known.insert(pod.clone(), 0);
    }

    /// The rules of `pod` have refused `count`, since they were installed.
    fn read(&self, pod: &PodId, count: u64) {
        let mut counted = self.lock();
        // One of an earlier daemon: what was before counts nowhere.
        let before = counted.known.insert(pod.clone(), count).unwrap_or(count);
        counted.total += count.saturating_sub(before);
        counted.last = Some(pod.clone());
    }

    /// `pods`, beginning behind the one that was read last.
    fn in_turn(&self, mut pods: Vec<PodId>) -> Vec<PodId> {
        let mut counted = self.lock();
        pods.sort_unstable();
        if counted.known.len() > pods.len() + SLACK {
            counted
                .known
                .retain(|pod, _| pods.binary_search(pod).is_ok());
        }
        let last = counted.last.as_ref();
        let first = last.map_or(0, |last| pods.partition_point(|pod| pod <= last));
        pods.rotate_left(first);
        pods
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // No panic leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Packets that the lists of pods have refused since the daemon's start; `pods` are those under a list. Blocks for
    /// [`LIMIT`].
    pub fn egress_refusals(&self, pods: Vec<PodId>) -> u64 {
        let began = Instant::now();
        for pod in self.refusals.in_turn(pods) {
            if began.elapsed() > LIMIT {
                break;
            }
            self.read_refusals(&pod);
        }
        self.refusals.lock().total
    }

    /// The list of `pod` is in force from now on.
    pub(super) fn begin_refusals(&self, pod: &PodId) {
        self.refusals.begin(pod);
    }

    /// The rules of a pod are about to be gone, if it is under a list. Blocks.
    pub(super) fn end_refusals(&self, record: &PodRecord) {
        if record.config.reach() != Egress::Open {
            self.read_refusals(&record.id);
            self.refusals.lock().known.remove(&record.id);
        }
    }

    /// A pod whose namespace is gone, or whose rules cannot be listed, has refused nothing more.
    fn read_refusals(&self, pod: &PodId) {
        let Ok(netns) = network::open_pin(&self.pin(pod)) else {
            return;
        };
        match egress::refused(netns.as_fd()) {
            Ok(count) => self.refusals.read(pod, count),
            Err(error) => tracing::debug!(%pod, %error, "refusals of an egress list were not read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(digit: char) -> PodId {
        let id = digit.to_string().repeat(64).parse();
        id.unwrap_or_else(|_| panic!("{digit} makes no id"))
    }

    #[test]
    fn what_an_earlier_daemon_left_is_not_counted_and_new_rules_begin_at_nothing() {
        let refusals = Refusals::default();
        let total = || refusals.lock().total;
        refusals.read(&pod('a'), 70);
        assert_eq!(total(), 0);
        refusals.read(&pod('a'), 72);
        assert_eq!(total(), 2);
        refusals.begin(&pod('b'));
        refusals.read(&pod('b'), 5);
        assert_eq!(total(), 7);
        // Installed again, as plugins have given the node addresses.
        refusals.begin(&pod('b'));
        refusals.read(&pod('b'), 1);
        assert_eq!(total(), 8);
    }

    #[test]
    fn whoever_was_read_longest_ago_comes_first_and_those_that_are_gone_are_dropped() {
        let refusals = Refusals::default();
        let all: Vec<PodId> = ['a', 'b', 'c'].map(pod).to_vec();
        refusals.read(&pod('b'), 1);
        let turn = refusals.in_turn(all.clone());
        assert_eq!(turn, ['c', 'a', 'b'].map(pod));
        refusals.read(&pod('c'), 1);
        assert_eq!(refusals.in_turn(all), ['a', 'b', 'c'].map(pod));
        for number in 0..=SLACK {
            let id = format!("{number:064x}").parse();
            refusals.begin(&id.unwrap_or_else(|_| panic!("{number} makes no id")));
        }
        refusals.in_turn(vec![pod('b')]);
        let left: Vec<PodId> = refusals.lock().known.keys().cloned().collect();
        assert_eq!(left, [pod('b')]);
    }
}
