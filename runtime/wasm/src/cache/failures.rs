//! Modules that the compiler has refused or run out of its limits on, with its reason, for a while.
//!
//! Used by the cache. In memory only: a restart, which is also the only way to other limits, forgets all of it.
//! Invariants: at most [`MOST`] are held; one is forgotten after [`REFUSED`] or [`EXHAUSTED`].
//! Must not know: compiling.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{At, lock};
use coracle_spec::error::{Error, Kind};

/// How long a refusal is remembered: the module cannot change, and the compiler not before a restart.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// How long it is remembered that limits were hit: on a busy node the next try may be faster.
const EXHAUSTED: Duration = Duration::from_secs(60);
/// Most failures held. Each is a few hundred bytes, 64 KiB at most.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<At, Failure>>);

#[derive(Debug)]
struct Failure {
    kind: Kind,
    text: String,
    at: Instant,
}

impl Failure {
    fn is_over(&self, now: Instant) -> bool {
        let kept = match self.kind {
            Kind::Invalid => REFUSED,
            _ => EXHAUSTED,
        };
        now.saturating_duration_since(self.at) >= kept
    }
}

impl Failures {
    /// Why this module did not compile, if that was lately.
    pub(super) fn find(&self, at: &At) -> Option<Error> {
        self.find_at(at, Instant::now())
    }

    fn find_at(&self, at: &At, now: Instant) -> Option<Error> {
        let mut held = lock(&self.0);
        if held.get(at)?.is_over(now) {
            held.remove(at);
            return None;
        }
        let failure = held.get(at)?;
        tracing::debug!(
            digest = at.1,
            "a module that failed to compile is not compiled again yet"
        );
        Some(Error::new(failure.kind, failure.text.clone()))
    }

    /// Remembers why it did not.
    pub(super) fn remember(&self, at: At, error: &Error) {
        self.remember_at(at, error, Instant::now());
    }

    fn remember_at(&self, at: At, error: &Error, now: Instant) {
        let mut held = lock(&self.0);
        if held.len() >= MOST {
            held.retain(|_, failure| !failure.is_over(now));
        }
        // Whoever has so many modules refused has others pay for one more try each.
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

    fn at(number: usize) -> At {
        ("engine".to_owned(), number.to_string())
    }

    #[test]
    fn a_failure_is_remembered_by_module_and_engine_for_its_time() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.remember_at(at(0), &Error::new(Kind::Invalid, "bad magic"), now);
        failures.remember_at(at(1), &Error::new(Kind::Exhausted, "too slow"), now);
        let found = |number, after| failures.find_at(&at(number), now + after);
        let refused = found(0, REFUSED - Duration::from_secs(1)).unwrap();
        assert_eq!(
            (refused.kind(), refused.chain()),
            (Kind::Invalid, "bad magic".to_owned())
        );
        assert!(found(1, EXHAUSTED - Duration::from_secs(1)).is_some());
        assert!(found(1, EXHAUSTED).is_none());
        assert!(found(0, REFUSED).is_none());
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
