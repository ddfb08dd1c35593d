//! What the cache counts: requests that it could answer, and how compilations ended.
//!
//! Used by the cache. Invariant: counting takes no lock. Must not know: who reads the numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::CompileCache;
use coracle_spec::error::{Error, Kind};

/// Since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileCounts {
    /// Requests whose code was there.
    pub hits: u64,
    /// Requests whose code was not there, or not as it was written.
    pub misses: u64,
    /// Modules that were compiled.
    pub compiled: u64,
    /// Modules that the engine refused.
    pub invalid: u64,
    /// Compilations that hit a limit.
    pub limited: u64,
    /// Compilations that failed otherwise.
    pub failed: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    compiled: AtomicU64,
    invalid: AtomicU64,
    limited: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    /// A request for code that was there, or not.
    pub(super) fn request(&self, is_there: bool) {
        let counter = if is_there { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A compilation that has ended.
    pub(super) fn compilation<T>(&self, ended: &Result<T, Error>) {
        let counter = match ended.as_ref().map_err(Error::kind) {
            Ok(_) => &self.compiled,
            Err(Kind::Invalid) => &self.invalid,
            Err(Kind::Exhausted | Kind::Deadline) => &self.limited,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl CompileCache {
    /// What was counted so far.
    pub fn counts(&self) -> CompileCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        CompileCounts {
            hits: of(&counters.hits),
            misses: of(&counters.misses),
            compiled: of(&counters.compiled),
            invalid: of(&counters.invalid),
            limited: of(&counters.limited),
            failed: of(&counters.failed),
        }
    }
}
