//! Rates from counters: current CPU use, and sums that never decrease.
//!
//! Called by: `stats`. Invariants: a rate comes from two samples that are far enough apart; a sum keeps the counts of
//! parts that are gone. Must not know: where the samples come from.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The shortest time between the two samples of a rate.
const SHORTEST: Duration = Duration::from_millis(500);

/// The last samples of counters, by name.
#[derive(Default)]
pub(super) struct Rates {
    samples: HashMap<String, Sample>,
}

struct Sample {
    at: Instant,
    count: u64,
    per_second: Option<u64>,
}

impl Rates {
    /// Adds a sample of the counter `name` and returns its growth per second. For an unknown counter that is the mean
    /// over its `age`, if that is known and long enough.
    pub(super) fn sample(&mut self, name: &str, count: u64, age: Option<Duration>) -> Option<u64> {
        let at = Instant::now();
        let Some(last) = self.samples.get_mut(name) else {
            let per_second = age
                .filter(|age| *age >= SHORTEST)
                .map(|age| growth(count, age));
            let sample = Sample {
                at,
                count,
                per_second,
            };
            self.samples.insert(name.to_owned(), sample);
            return per_second;
        };
        let passed = at.duration_since(last.at);
        if passed >= SHORTEST {
            let grown = count.saturating_sub(last.count);
            *last = Sample {
                at,
                count,
                per_second: Some(growth(grown, passed)),
            };
        }
        last.per_second
    }

    /// Drops counters that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.samples.retain(|name, _| exists(name));
    }

    /// The number of cached counters.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }
}

fn growth(count: u64, over: Duration) -> u64 {
    let per_second = u128::from(count) * 1_000_000_000 / over.as_nanos().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

/// A sum over parts that come and go.
#[derive(Default)]
pub(super) struct Sum {
    /// The counts of parts that are gone.
    gone: u64,
    parts: HashMap<String, u64>,
}

impl Sum {
    /// The sum over `parts`, by name, and over all earlier parts that are gone.
    pub(super) fn of(&mut self, parts: HashMap<String, u64>) -> u64 {
        let gone = self
            .parts
            .iter()
            .filter(|(name, _)| !parts.contains_key(*name));
        self.gone += gone.map(|(_, count)| count).sum::<u64>();
        self.parts = parts;
        self.gone + self.parts.values().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_growth_between_two_samples() {
        let mut rates = Rates::default();
        assert_eq!(rates.sample("a", 5_000, None), None);
        assert_eq!(
            rates.sample("a", 6_000, None),
            None,
            "too soon for a second sample"
        );
        let earlier = |rates: &mut Rates| {
            if let Some(sample) = rates.samples.get_mut("a") {
                sample.at -= Duration::from_secs(2);
            }
        };
        earlier(&mut rates);
        let half = rates.sample("a", 1_005_000, None).unwrap_or_default();
        assert!((490_000..=500_000).contains(&half), "{half}");
        assert_eq!(
            rates.sample("a", 9_000_000, None),
            Some(half),
            "the last rate stands for a while"
        );
        earlier(&mut rates);
        assert_eq!(
            rates.sample("a", 3, None),
            Some(0),
            "a counter that began anew"
        );
    }

    #[test]
    fn the_first_rate_is_the_mean_over_a_known_age() {
        let mut rates = Rates::default();
        let age = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(rates.sample("old", 10_000, age(10)), Some(1_000));
        assert_eq!(rates.sample("new", 10_000, age(0)), None);
        rates.retain(|name| name == "new");
        assert_eq!(rates.len(), 1);
    }

    #[test]
    fn a_sum_keeps_the_counts_of_parts_that_are_gone() {
        let parts =
            |list: &[(&str, u64)]| list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect();
        let mut sum = Sum::default();
        assert_eq!(sum.of(parts(&[("a", 10), ("b", 5)])), 15);
        assert_eq!(sum.of(parts(&[("b", 6), ("c", 1)])), 17);
        assert_eq!(sum.of(parts(&[])), 17);
        assert_eq!(sum.of(parts(&[("d", 2)])), 19);
    }
}
