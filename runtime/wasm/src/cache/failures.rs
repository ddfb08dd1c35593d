//! Remembers which modules failed to compile, and why.
//!
//! Used by the cache. In memory only; cleared when limits change.
//! Invariants: at most [`MOST`] are kept, and [`MOST_OF_IMAGE`] of an image, whose failures replace none of others as long as it
//! does not have the most; what the engine has refused is known as long as an image has it; what hit a limit may be tried
//! again, the more rarely the more often it did.
//! It must not know how modules are compiled.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{EntryKey, lock};
use coracle_spec::error::{Error, Kind};

/// How long it is remembered that a module hit a limit for the first time; twice as long after each further time. Neither
/// module nor limits have changed, but a module that is close to a limit may stay within it the next time.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// Longest time, as a power of two of the first.
const MOST_DOUBLINGS: u32 = 7;
/// Most failures of one image: as many as it may have modules with compiled code besides its own.
const MOST_OF_IMAGE: usize = 64;
/// Most failures kept.
const MOST: usize = 1024;
/// Longest text of a failure that is kept. Characters.
const MAX_TEXT: usize = 2048;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<EntryKey, Failure>>);

#[derive(Debug)]
struct Failure {
    image: String,
    kind: Kind,
    text: String,
    at: Instant,
    /// How often it failed before.
    before: u32,
}

impl Failure {
    fn is_over(&self, now: Instant) -> bool {
        let kept = KEPT * (1 << self.before.min(MOST_DOUBLINGS));
        self.kind != Kind::Invalid && now.saturating_duration_since(self.at) >= kept
    }
}

impl Failures {
    /// The remembered failure of this module, unless it may be tried again.
    pub(super) fn find(&self, at: &EntryKey) -> Option<Error> {
        self.find_at(at, Instant::now())
    }

    fn find_at(&self, at: &EntryKey, now: Instant) -> Option<Error> {
        let held = lock(&self.0);
        let failure = held.get(at).filter(|failure| !failure.is_over(now))?;
        tracing::debug!(
            digest = at.1,
            "module failed to compile, not compiling it again yet"
        );
        Some(Error::new(failure.kind, failure.text.clone()))
    }

    /// Forgets all failures.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }

    /// Forgets those of modules for whose digest `keep` returns false: no image has them.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|(_, digest), _| keep(digest));
    }

    /// Remembers that this module of `image` failed to compile.
    pub(super) fn remember(&self, at: &EntryKey, image: &str, error: &Error) {
        self.remember_at(at, image, error, Instant::now());
    }

    fn remember_at(&self, at: &EntryKey, image: &str, error: &Error, now: Instant) {
        let mut held = lock(&self.0);
        let before = held.remove(at).map_or(0, |known| known.before + 1);
        if held.values().filter(|known| known.image == image).count() >= MOST_OF_IMAGE {
            drop_oldest(&mut held, image);
        } else if held.len() >= MOST {
            let image = image_with_most(&held);
            drop_oldest(&mut held, &image);
        }
        let failure = Failure {
            image: image.to_owned(),
            kind: error.kind(),
            text: error.chain().chars().take(MAX_TEXT).collect(),
            at: now,
            before,
        };
        held.insert(at.clone(), failure);
    }
}

/// The image with the most failures.
fn image_with_most(held: &HashMap<EntryKey, Failure>) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for failure in held.values() {
        *counts.entry(&failure.image).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or_else(String::new, |(image, _)| image.to_owned())
}

fn drop_oldest(held: &mut HashMap<EntryKey, Failure>, image: &str) {
    let own = held.iter().filter(|(_, known)| known.image == image);
    let oldest = own.min_by_key(|(_, known)| known.at);
    if let Some(at) = oldest.map(|(at, _)| at.clone()) {
        held.remove(&at);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn at(number: usize) -> EntryKey {
        ("engine".to_owned(), number.to_string())
    }

    #[test]
    fn a_refused_module_is_known_while_it_is_there_and_a_limit_for_its_time() {
        let (failures, now) = (Failures::default(), Instant::now());
        let slow = Error::new(Kind::Exhausted, "too slow");
        failures.remember_at(&at(0), "a", &Error::new(Kind::Invalid, "bad magic"), now);
        failures.remember_at(&at(1), "a", &slow, now);
        let found = |number, after| failures.find_at(&at(number), now + after);
        let refused = found(0, KEPT * 1000).unwrap();
        assert_eq!(
            (refused.kind(), refused.chain()),
            (Kind::Invalid, "bad magic".to_owned())
        );
        let soon = Duration::from_secs(1);
        assert!(found(1, KEPT - soon).is_some() && found(1, KEPT).is_none());
        // The second time it takes twice as long.
        failures.remember_at(&at(1), "a", &slow, now + KEPT);
        assert!(found(1, KEPT * 3 - soon).is_some() && found(1, KEPT * 3).is_none());
        for _ in 0..50 {
            failures.remember_at(&at(1), "a", &slow, now);
        }
        assert!(found(1, KEPT * (1 << MOST_DOUBLINGS)).is_none());
        let other = ("other engine".to_owned(), "0".to_owned());
        assert!(failures.find_at(&other, now).is_none() && found(2, Duration::ZERO).is_none());
        failures.retain(|digest| digest != "0");
        assert!(found(0, Duration::ZERO).is_none() && found(1, Duration::ZERO).is_some());
    }

    #[test]
    fn an_image_with_many_failures_makes_none_of_others_forgotten() {
        let failures = Failures::default();
        let refused = Error::new(Kind::Invalid, "no");
        failures.remember(&at(0), "other", &refused);
        for number in 1..=MOST_OF_IMAGE * 3 {
            failures.remember(&at(number), "greedy", &refused);
            assert!(failures.find(&at(number)).is_some() && failures.find(&at(0)).is_some());
            assert!(lock(&failures.0).len() <= MOST_OF_IMAGE + 1);
        }
        for number in 1000..1000 + MOST * 2 {
            failures.remember(&at(number), &format!("image {}", number / 60), &refused);
            assert!(failures.find(&at(number)).is_some() && failures.find(&at(0)).is_some());
            assert!(lock(&failures.0).len() <= MOST);
        }
    }
}
