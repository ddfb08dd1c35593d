//! Whose turn it is at a pod: CHECK and DELs of one pod follow each other, other pods never wait.
//!
//! Called by: [`super::Cni`].
//! Invariants: a pod is known here only while somebody has its turn or waits for it, however they end.
//! Not here: what is done in a turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedMutexGuard};

/// The turns of all pods.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Known>>);

/// A pod, and how many have its turn or wait for it.
#[derive(Debug, Default)]
struct Known {
    seat: Arc<Seat>,
    takers: usize,
}

#[derive(Debug, Default)]
struct Seat {
    lock: Arc<tokio::sync::Mutex<()>>,
    wanted: Notify,
}

/// The turn at one pod, given back when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    // Before the place, which takes care that the next one finds the same lock.
    _lock: OwnedMutexGuard<()>,
    place: Place<'a>,
}

/// A place among those who have or want the turn.
#[derive(Debug)]
struct Place<'a> {
    turns: &'a Turns,
    pod: String,
    seat: Arc<Seat>,
}

impl Turns {
    /// Waits for the turn at a pod, and lets whoever has it know.
    pub async fn take(&self, pod: &str) -> Turn<'_> {
        let place = self.place(pod);
        let lock = Arc::clone(&place.seat.lock).lock_owned().await;
        Turn { _lock: lock, place }
    }

    fn place(&self, pod: &str) -> Place<'_> {
        let mut all = self.lock();
        let known = all.entry(pod.to_owned()).or_default();
        known.takers += 1;
        if known.takers > 1 {
            known.seat.wanted.notify_one();
        }
        Place {
            turns: self,
            pod: pod.to_owned(),
            seat: Arc::clone(&known.seat),
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // No use of it leaves the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Waits until somebody else wants this turn.
    pub async fn is_wanted(&self) {
        self.place.seat.wanted.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.turns.lock();
        if let Some(known) = all.get_mut(&self.pod) {
            known.takers -= 1;
            if known.takers == 0 {
                all.remove(&self.pod);
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
    async fn a_pod_is_known_while_its_turn_is_had_or_wanted() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let other = timeout(SOON, turns.take("b")).await;
        assert!(other.is_ok(), "pods never wait for each other");
        assert!(timeout(SOON, first.is_wanted()).await.is_err());
        assert!(timeout(SOON, turns.take("a")).await.is_err());
        assert!(timeout(SOON, first.is_wanted()).await.is_ok());
        drop(other);
        assert_eq!(turns.len(), 1);
        let (second, ()) = tokio::join!(turns.take("a"), async { drop(first) });
        assert_eq!(turns.len(), 1);
        drop(second);
        assert_eq!(turns.len(), 0);
    }
}
