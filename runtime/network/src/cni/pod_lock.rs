//! One lock per pod: CHECK and DELs of a pod run one after the other, and other pods never wait for them.
//!
//! Called by: [`super::Cni`].
//! Invariant: the map has a pod only while its lock is held or awaited, also when a waiter is cancelled.
//! Not here: what runs under the lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedMutexGuard};

/// The locks of all pods.
#[derive(Debug, Default)]
pub struct PodLocks(Mutex<HashMap<String, Entry>>);

/// The lock of a pod, and how many hold it or wait for it.
#[derive(Debug, Default)]
struct Entry {
    lock: Arc<PodLock>,
    users: usize,
}

#[derive(Debug, Default)]
struct PodLock {
    mutex: Arc<tokio::sync::Mutex<()>>,
    /// Notified when somebody begins to wait for the lock.
    contended: Notify,
}

/// The lock of one pod, held until this is dropped.
#[derive(Debug)]
pub struct PodLockGuard<'a> {
    // Dropped before `user`, so that a waiter finds the same lock in the map.
    _guard: OwnedMutexGuard<()>,
    user: User<'a>,
}

/// Counts one who holds the lock or waits for it; dropping the last one removes the lock from the map.
#[derive(Debug)]
struct User<'a> {
    locks: &'a PodLocks,
    pod: String,
    lock: Arc<PodLock>,
}

impl PodLocks {
    /// Notifies the present holder of a pod's lock, waits for the lock and takes it.
    pub async fn acquire(&self, pod: &str) -> PodLockGuard<'_> {
        let user = self.add_user(pod);
        let guard = Arc::clone(&user.lock.mutex).lock_owned().await;
        PodLockGuard {
            _guard: guard,
            user,
        }
    }

    fn add_user(&self, pod: &str) -> User<'_> {
        let mut locks = self.lock();
        let entry = locks.entry(pod.to_owned()).or_default();
        entry.users += 1;
        if entry.users > 1 {
            entry.lock.contended.notify_one();
        }
        User {
            locks: self,
            pod: pod.to_owned(),
            lock: Arc::clone(&entry.lock),
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // A panic cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodLockGuard<'_> {
    /// Waits until somebody else waits for this lock.
    pub async fn is_contended(&self) {
        self.user.lock.contended.notified().await;
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let mut locks = self.locks.lock();
        if let Some(entry) = locks.get_mut(&self.pod) {
            entry.users -= 1;
            if entry.users == 0 {
                locks.remove(&self.pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_lock_exists_while_it_is_held_or_awaited() {
        let locks = PodLocks::default();
        let first = locks.acquire("a").await;
        let other = timeout(SOON, locks.acquire("b")).await;
        assert!(other.is_ok(), "pods never wait for each other");
        assert!(timeout(SOON, first.is_contended()).await.is_err());
        assert!(timeout(SOON, locks.acquire("a")).await.is_err());
        assert!(timeout(SOON, first.is_contended()).await.is_ok());
        drop(other);
        assert_eq!(locks.len(), 1);
        let (second, ()) = tokio::join!(locks.acquire("a"), async { drop(first) });
        assert_eq!(locks.len(), 1);
        drop(second);
        assert_eq!(locks.len(), 0);
    }
}
