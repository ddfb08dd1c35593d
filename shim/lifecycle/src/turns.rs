//! Turns of work that the kernel may keep for ever, one for a pod.
//!
//! Called by: changes of limits. Invariants: the turns of one namespace are never more than are left for others; a pod has
//! one at a time, so that one that hangs costs no more than that.
//! Must not know: what is done.

use coracle_streaming::{Owner, Turn as Share, Turns as Shares};
use tokio::sync::Notify;

/// A number of turns.
#[derive(Debug)]
pub(crate) struct Turns {
    shares: Shares,
    freed: Notify,
}

/// A turn; another one may have it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    share: Option<Share>,
}

impl Turns {
    /// `at_a_time` of them.
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self {
            shares: Shares::new(at_a_time, 1),
            freed: Notify::new(),
        }
    }

    /// Waits for a turn of `owner`.
    pub(crate) async fn take(&self, owner: &Owner) -> Turn<'_> {
        loop {
            // Before looking: a turn that is freed in between is noticed.
            let freed = self.freed.notified();
            if let Some(share) = self.shares.take(owner) {
                return Turn {
                    turns: self,
                    share: Some(share),
                };
            }
            freed.await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.share.take());
        self.turns.freed.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The turn, if there is one now.
    async fn now<'a>(turns: &'a Turns, tenant: &str, pod: &str) -> Option<Turn<'a>> {
        let owner = Owner {
            tenant: tenant.to_owned(),
            target: pod.to_owned(),
        };
        let short = Duration::from_millis(10);
        tokio::time::timeout(short, turns.take(&owner)).await.ok()
    }

    #[tokio::test]
    async fn pods_of_a_namespace_that_hang_leave_turns_for_others() {
        let turns = Turns::new(8);
        let mut held = Vec::new();
        for number in 0..20 {
            held.extend(now(&turns, "greedy", &format!("pod {number}")).await);
        }
        assert_eq!(held.len(), 4);
        assert!(now(&turns, "other", "a").await.is_some());
        let _own = now(&turns, "other", "a").await.unwrap();
        assert!(now(&turns, "other", "a").await.is_none(), "two of a pod");
        assert!(now(&turns, "third", "b").await.is_some());
    }

    #[tokio::test]
    async fn a_turn_that_is_over_goes_to_whoever_waits() {
        let turns = Turns::new(2);
        let first = now(&turns, "a", "pod").await.unwrap();
        let owner = Owner {
            tenant: "a".to_owned(),
            target: "other".to_owned(),
        };
        let mut next = std::pin::pin!(turns.take(&owner));
        let short = Duration::from_millis(10);
        assert!(tokio::time::timeout(short, next.as_mut()).await.is_err());
        drop(first);
        next.await;
    }
}
