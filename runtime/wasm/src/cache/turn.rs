//! What is going on with one cache entry, shared by all who want that entry at the same time.
//!
//! Used by requests. Invariants: an entry is in the map as long as somebody uses it, and no longer; whoever waits for the end
//! of a compilation learns of it, however that ends.
//! It must not know what is looked up or made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use super::{CompileCache, EntryKey, lock};

/// The state of an entry that somebody wants.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Held while the entry is looked up or stored.
    look: Arc<Mutex<()>>,
    is_being_made: AtomicBool,
    /// Signalled when it is not made any more.
    ended: Arc<Notify>,
}

/// A caller's use of an entry. The last one to end removes its state from the map.
pub(super) struct Turn {
    cache: Arc<CompileCache>,
    at: EntryKey,
    busy: Arc<Busy>,
}

impl Turn {
    pub(super) fn of(cache: &Arc<CompileCache>, at: &EntryKey) -> Self {
        let busy = lock(&cache.busy).entry(at.clone()).or_default().clone();
        Self {
            cache: Arc::clone(cache),
            at: at.clone(),
            busy,
        }
    }

    pub(super) fn at(&self) -> &EntryKey {
        &self.at
    }

    /// The right to look the entry up, or to store it.
    pub(super) async fn look(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.busy.look).lock_owned().await
    }

    /// Ends with the compilation that is under way or begins after this call.
    pub(super) fn ended(&self) -> std::pin::Pin<Box<OwnedNotified>> {
        Box::pin(Arc::clone(&self.busy.ended).notified_owned())
    }

    pub(super) fn is_being_made(&self) -> bool {
        self.busy.is_being_made.load(Ordering::SeqCst)
    }

    /// The right to make the entry; `None` if somebody has it.
    pub(super) fn begin(self) -> Option<Making> {
        let is_made = self.busy.is_being_made.swap(true, Ordering::SeqCst);
        (!is_made).then(|| Making(self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = lock(&self.cache.busy);
        // The map's and this one.
        if Arc::strong_count(&self.busy) <= 2 {
            busy.remove(&self.at);
        }
    }
}

/// The right to make an entry. All who wait for it go on when this is dropped.
pub(super) struct Making(Turn);

impl Making {
    pub(super) fn turn(&self) -> &Turn {
        &self.0
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.busy.is_being_made.store(false, Ordering::SeqCst);
        self.0.busy.ended.notify_waiters();
    }
}
