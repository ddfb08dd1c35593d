//! A counting semaphore for threads.
//! Called by `systemd`. Invariant: dropping a permit gives it back, also when its holder panics.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A fixed number of permits.
#[derive(Debug)]
pub(super) struct Semaphore {
    free: Mutex<usize>,
    released: Condvar,
}

/// One permit; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Semaphore);

impl Semaphore {
    /// A semaphore with `permits` permits.
    pub(super) fn new(permits: usize) -> Self {
        Self {
            free: Mutex::new(permits),
            released: Condvar::new(),
        }
    }

    /// Waits for a permit.
    pub(super) fn acquire(&self) -> Permit<'_> {
        let mut free = self.free();
        while *free == 0 {
            free = self
                .released
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Permit(self)
    }

    /// The number of free permits. A panic cannot leave it half changed.
    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn permits_bound_concurrency_and_everybody_gets_one() {
        let (semaphore, inside, most, passed) = (
            Semaphore::new(2),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    let _permit = semaphore.acquire();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    passed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= 2);
        assert_eq!(passed.into_inner(), 10);
        // Two at once, or this would wait for ever.
        let _both = [semaphore.acquire(), semaphore.acquire()];
    }
}
