//! What was written to the store and is perhaps not on the disk yet, and the sync that brings it there.
//!
//! Called by: [`crate::blobs`], which writes, and the pull, before it records anything.
//! Invariants: whatever a record names was synced before; archives of layers never are, unless they are kept, and the pulls
//! that wait while the file system is synced share the next sync; what cannot be known to be whole is read before it is used.
//! Not here: files, the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::blocking::blocking;
use crate::error::Error;
use crate::reference::Digest;

/// What is not known to be on the disk.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    /// Numbers what is written, and whoever waits for it.
    now: AtomicU64,
    blobs: Mutex<HashMap<Digest, u64>>,
    /// What has this number or one before is on the disk.
    synced: tokio::sync::Mutex<u64>,
}

/// The blobs, while none of them is written or forgotten.
pub(crate) struct HeldBlobs<'a> {
    now: &'a AtomicU64,
    held: MutexGuard<'a, HashMap<Digest, u64>>,
}

impl HeldBlobs<'_> {
    /// A blob has just got its name.
    pub(crate) fn add(&mut self, digest: Digest) {
        self.held.insert(digest, next(self.now));
    }

    /// A blob is gone, or on the disk.
    pub(crate) fn remove(&mut self, digest: &Digest) {
        self.held.remove(digest);
    }
}

impl Unsynced {
    /// Holds the blobs.
    pub(crate) fn blobs(&self) -> HeldBlobs<'_> {
        let held = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        HeldBlobs {
            now: &self.now,
            held,
        }
    }

    /// Whether this blob may not be on the disk.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs().held.contains_key(digest)
    }

    /// Waits until everything that was written before this call is on the disk; `sync` syncs the whole file system. Errors:
    /// its own; the daemon ends.
    pub(crate) async fn sync_all(
        &self,
        sync: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let own = next(&self.now);
        let mut synced = self.synced.lock().await;
        if *synced >= own {
            return Ok(());
        }
        let until = self.now.load(Ordering::Acquire);
        blocking("syncing the image store", sync).await?;
        self.blobs().held.retain(|_, written| *written > until);
        *synced = until;
        Ok(())
    }
}

fn next(now: &AtomicU64) -> u64 {
    now.fetch_add(1, Ordering::AcqRel) + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_wait_share_a_sync_that_began_after_they_had_written() {
        let (unsynced, syncs) = (Arc::new(Unsynced::default()), Arc::new(AtomicUsize::new(0)));
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(Mutex::new(ends));
        let sync = || {
            let (unsynced, syncs, ends) = (unsynced.clone(), syncs.clone(), ends.clone());
            tokio::spawn(async move {
                let sync = move || {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    ends.lock().unwrap().recv().unwrap();
                    Ok(())
                };
                unsynced.sync_all(sync).await
            })
        };
        let until = async |count: usize| {
            while syncs.load(Ordering::SeqCst) < count {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let [first, second] = [b"1", b"2"].map(|text| Digest::of(text));
        unsynced.blobs().add(first.clone());
        let begun = sync();
        until(1).await;
        // Written while a sync runs that may not have it.
        unsynced.blobs().add(second.clone());
        let mut waiting: Vec<_> = (0..10).map(|_| sync()).collect();
        while unsynced.now.load(Ordering::SeqCst) < 13 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        end.send(()).unwrap();
        begun.await.unwrap().unwrap();
        assert_eq!((unsynced.has(&first), unsynced.has(&second)), (false, true));
        until(2).await;
        end.send(()).unwrap();
        for waiting in waiting.drain(..) {
            waiting.await.unwrap().unwrap();
        }
        assert!(!unsynced.has(&second));
        assert_eq!(syncs.load(Ordering::SeqCst), 2, "ten waited for one");
    }

    #[tokio::test]
    async fn after_a_sync_that_failed_nothing_counts_as_synced() {
        let unsynced = Unsynced::default();
        let blob = Digest::of(b"blob");
        unsynced.blobs().add(blob.clone());
        let failing = || Err(Error::Cancelled { doing: "a test" });
        unsynced.sync_all(failing).await.unwrap_err();
        assert!(unsynced.has(&blob));
        unsynced.sync_all(|| Ok(())).await.unwrap();
        assert!(!unsynced.has(&blob));
    }
}
