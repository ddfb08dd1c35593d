//! Lets a few threads in at a time; the others wait.
//! Called by `systemd`. Invariant: a turn ends with its value, whatever its holder does.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// So many may be inside.
#[derive(Debug)]
pub(super) struct Gate {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place inside; dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Gate);

impl Gate {
    /// A gate for this many at a time.
    pub(super) fn new(at_a_time: usize) -> Self {
        Self {
            free: Mutex::new(at_a_time),
            left: Condvar::new(),
        }
    }

    /// Waits for a turn.
    pub(super) fn enter(&self) -> Turn<'_> {
        let mut free = self.free();
        while *free == 0 {
            free = self.left.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Turn(self)
    }

    /// The count is whole at every moment, so that a panic elsewhere leaves nothing to distrust.
    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn no_more_than_asked_for_are_inside_and_all_get_in() {
        let (gate, inside, most, passed) = (
            Gate::new(2),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    let _turn = gate.enter();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    passed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 2);
        assert_eq!(passed.into_inner(), 10);
    }
}
