//! How many log threads have not begun: until then one may allocate, and nobody may fork.
//!
//! Called by: [`super::LogThread`], its thread, and the keeper before each fork. Invariant: a thread counts from before it is
//! made until it runs our code. Not here: what it may do from then on.

use std::sync::atomic::{AtomicU32, Ordering};

static BEGINNING: AtomicU32 = AtomicU32::new(0);

/// A thread is about to be made.
pub(super) fn begins() {
    BEGINNING.fetch_add(1, Ordering::AcqRel);
}

/// It runs, or was not made. From any thread: one addition and nothing else.
pub(super) fn has_begun() {
    BEGINNING.fetch_sub(1, Ordering::AcqRel);
}

/// Waits until every log thread has begun. Nearly always it waits for nothing.
pub fn await_begun() {
    while BEGINNING.load(Ordering::Acquire) > 0 {
        std::thread::yield_now();
    }
}
