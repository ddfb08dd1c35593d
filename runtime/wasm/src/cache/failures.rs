//! Remembers for a while which modules failed to compile, and why.
//!
//! Used by the cache. In memory only; cleared when limits change.
//! Invariants: at most [`MOST`] are kept; an entry expires after [`KEPT`].
//! It must not know how modules are compiled.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{EntryKey, lock};
use coracle_spec::error::{Error, Kind};

/// How long a failure is remembered. Neither module nor limits have changed, but a module that is close to a
/// limit may stay within it the next time.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// Most failures kept. Each takes a few hundred bytes, 64 KiB at most.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<EntryKey, Failure>>);

#[derive(Debug)]
struct Failure {
    kind: Kind,
    text: String,
    at: Instant,
}

impl Failure {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= KEPT
    }
}

impl Failures {
    /// The remembered failure of this module, unless it has expired.
    pub(super) fn find(&self, at: &EntryKey) -> Option<Error> {
        self.find_at(at, Instant::now())
    }

    fn find_at(&self, at: &EntryKey, now: Instant) -> Option<Error> {
        let mut held = lock(&self.0);
        if held.get(at)?.is_over(now) {
            held.remove(at);
            return None;
        }
        let failure = held.get(at)?;
        tracing::debug!(
            digest = at.1,
            "module failed to compile recently, not compiling it again yet"
        );
        Some(Error::new(failure.kind, failure.text.clone()))
    }

    /// Forgets all failures.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }

    /// Remembers that this module failed to compile.
    pub(super) fn remember(&self, at: EntryKey, error: &Error) {
        self.remember_at(at, error, Instant::now());
    }

    fn remember_at(&self, at: EntryKey, error: &Error, now: Instant) {
        let mut held = lock(&self.0);
        if held.len() >= MOST {
            held.retain(|_, failure| !failure.is_over(now));
        }
        // With this many failures at once we start over: each module costs one more try.
        if held.len() >= MOST {
            held.clear();
        }
        let (kind, text) = (error.kind(), error.chain());
        held.insert(
            at,
            Failure {
                kind,
                text,
                at: now,
            },
        );
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
    fn a_failure_is_remembered_by_module_and_engine_for_its_time() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.remember_at(at(0), &Error::new(Kind::Invalid, "bad magic"), now);
        failures.remember_at(at(1), &Error::new(Kind::Exhausted, "too slow"), now);
        let found = |number, after| failures.find_at(&at(number), now + after);
        let refused = found(0, KEPT - Duration::from_secs(1)).unwrap();
        assert_eq!(
            (refused.kind(), refused.chain()),
            (Kind::Invalid, "bad magic".to_owned())
        );
        assert!(found(1, KEPT - Duration::from_secs(1)).is_some());
        assert!(found(1, KEPT).is_none());
        assert!(found(0, KEPT).is_none());
        assert!(found(2, Duration::ZERO).is_none());
        let other = ("other engine".to_owned(), "0".to_owned());
        assert!(failures.find_at(&other, now).is_none());
        assert!(lock(&failures.0).is_empty(), "what is over stays");
    }

    #[test]
    fn the_number_of_remembered_failures_is_bounded() {
        let failures = Failures::default();
        for number in 0..MOST * 3 {
            failures.remember(at(number), &Error::new(Kind::Invalid, "no"));
            assert!(failures.find(&at(number)).is_some());
            assert!(lock(&failures.0).len() <= MOST);
        }
    }
}
