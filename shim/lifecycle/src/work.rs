//! Counts effects under way, so that a daemon that is stopping can wait for them.
//!
//! Called by: drivers (begin), [`super::Pods::drain`] (wait). Invariant: an effect is counted until it ends, even by a
//! panic. Must not know: what an effect does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The count.
#[derive(Debug, Default)]
pub struct Work {
    under_way: AtomicUsize,
    idle: Notify,
}

/// One effect; ends when dropped.
#[derive(Debug)]
pub struct WorkGuard(Arc<Work>);

impl Work {
    /// Counts one more.
    pub fn begin(self: &Arc<Self>) -> WorkGuard {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        WorkGuard(Arc::clone(self))
    }

    /// Waits until nothing is under way.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn idle_waits_for_the_last_effect_even_if_it_panics() {
        let work = Arc::new(Work::default());
        work.idle().await;
        let (one, two) = (work.begin(), work.begin());
        drop(one);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), work.idle())
                .await
                .is_err()
        );
        let panicked = std::thread::spawn(move || {
            let _held = two;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        tokio::time::timeout(Duration::from_secs(60), work.idle())
            .await
            .unwrap();
    }
}
