//! The limits of sessions that an operator changes while the server runs.
//!
//! Used by: the server, for each new session; the daemon's reload. Invariant: a session keeps the limits that it began with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The limits of new sessions.
#[derive(Debug)]
pub struct Limits(Mutex<Values>);

#[derive(Debug)]
struct Values {
    idle: Duration,
    origins: Arc<[String]>,
}

impl Limits {
    /// A session that is idle for as long as `idle` ends. `origins` are allowed in addition to this host's own; `*` is any.
    /// Empty: the origin is not checked.
    #[must_use]
    pub fn new(idle: Duration, origins: &[String]) -> Self {
        let origins = origins.into();
        Self(Mutex::new(Values { idle, origins }))
    }

    /// Changes both, for new sessions.
    pub fn set(&self, idle: Duration, origins: &[String]) {
        let origins = origins.into();
        *self.values() = Values { idle, origins };
    }

    pub(super) fn idle(&self) -> Duration {
        self.values().idle
    }

    pub(super) fn origins(&self) -> Arc<[String]> {
        Arc::clone(&self.values().origins)
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
