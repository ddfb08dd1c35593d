//! What the cache counts: requests that it could answer, and how compilations ended.
//!
//! Used by the cache. Invariant: counting takes no lock. Must not know: who reads the numbers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::CompileCache;
use coracle_spec::error::{Error, Kind};

/// Since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileCounts {
    /// Requests whose code was there.
    pub hits: u64,
    /// Requests whose code was not there, or not as it was written.
    pub misses: u64,
    /// Among those, requests whose code was there and not as it was written: it failed verification.
    pub refused: u64,
    /// Modules that were compiled.
    pub compiled: u64,
    /// Modules that the engine refused.
    pub invalid: u64,
    /// Compilations that hit a limit.
    pub limited: u64,
    /// Compilations that failed otherwise.
    pub failed: u64,
}

/// Learns how a compilation ended (`ok`, `invalid`, `limit`, `failed`) and how long it took, with its wait for a place. It must
/// not block.
pub type CompileObserver = fn(&'static str, Duration);

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
    observer: OnceLock<CompileObserver>,
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

    /// Code that was there failed verification.
    pub(super) fn refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A compilation that has ended after `took`.
    pub(super) fn compilation<T>(&self, ended: &Result<T, Error>, took: Duration) {
        let (counter, result) = match ended.as_ref().map_err(Error::kind) {
            Ok(_) => (&self.compiled, "ok"),
            Err(Kind::Invalid) => (&self.invalid, "invalid"),
            Err(Kind::Exhausted | Kind::Deadline) => (&self.limited, "limit"),
            Err(_) => (&self.failed, "failed"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = self.observer.get() {
            observer(result, took);
        }
    }
}

impl CompileCache {
    /// Tells `observer` of each compilation from now on, once.
    pub fn observe(&self, observer: CompileObserver) {
        let _ = self.counters.observer.set(observer);
    }

    /// What was counted so far.
    pub fn counts(&self) -> CompileCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        CompileCounts {
            hits: of(&counters.hits),
            misses: of(&counters.misses),
            refused: of(&counters.refused),
            compiled: of(&counters.compiled),
            invalid: of(&counters.invalid),
            limited: of(&counters.limited),
            failed: of(&counters.failed),
        }
    }
}
