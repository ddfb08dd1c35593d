//! What a plugin has learnt already, so that it learns of each change once: when it is synchronised, or by an event.
//!
//! Called by: [`super::sync`], [`super::subject`], in the plugin's turn. Invariant: it holds what exists, and no more.
//! Must not know: calls.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pods with the number of the last event that the plugin learnt by its synchronisation, or 0 if it was asked about the
/// pod; and containers whose creation it was asked about, until it has an end.
#[derive(Default)]
pub struct Known(Mutex<HashMap<String, u64>>);

impl Known {
    /// The plugin knows the pod or container, and the pod's events up to a number.
    pub fn learn(&self, id: &str, number: u64) {
        self.lock().entry(id.to_owned()).or_insert(number);
    }

    /// The last event of a pod that it knows; `None` if it does not know the pod, or the container.
    pub fn last(&self, id: &str) -> Option<u64> {
        self.lock().get(id).copied()
    }

    /// The pod or container is gone.
    pub fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
