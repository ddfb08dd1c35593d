//! Tests which make processes, and those which a process would mislead, one at a time.
//!
//! Used by tests alone. A process that is about to execute a program holds copies of all that its parent has open: locks
//! that the parent gives up, listeners that it closes.

use std::sync::{Mutex, MutexGuard, PoisonError};

static FORKING: Mutex<()> = Mutex::new(());

/// Held by such a test.
pub(crate) fn held() -> MutexGuard<'static, ()> {
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}
