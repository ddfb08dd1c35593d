//! The lock of one cache entry, shared by all who want that entry at the same time.
//!
//! Used by the cache. Invariant: an entry's lock is in the map as long as somebody uses it, and no longer.
//! It must not know what the lock is held for.

use std::sync::Arc;

use super::{CompileCache, EntryKey, EntryLock, lock};

/// A caller's use of an entry's lock. The last one to end removes the lock from the map.
pub(super) struct Turn {
    cache: Arc<CompileCache>,
    at: EntryKey,
    /// Held while the entry is looked up or made.
    pub(super) lock: EntryLock,
}

impl Turn {
    pub(super) fn of(cache: &Arc<CompileCache>, at: &EntryKey) -> Self {
        let entry_lock = lock(&cache.busy).entry(at.clone()).or_default().clone();
        Self {
            cache: Arc::clone(cache),
            at: at.clone(),
            lock: entry_lock,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = lock(&self.cache.busy);
        // The map's and this one.
        if Arc::strong_count(&self.lock) <= 2 {
            busy.remove(&self.at);
        }
    }
}
