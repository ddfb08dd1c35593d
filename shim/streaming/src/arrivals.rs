//! Connections that have not brought a good request yet: how many there may be, and which one makes room for the next.
//!
//! Called by: [`super::server`], for each connection. Invariants: at most [`MOST`] are held; the next one is always let in,
//! in place of the oldest of those that said nothing, from the address that has most of them.
//! Must not know: what is said.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Most connections that have not brought a good request yet.
pub(super) const MOST: usize = 256;

/// Those that have arrived, by their number; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    from: IpAddr,
    has_spoken: bool,
    /// Dropped to tell it to leave.
    _stay: oneshot::Sender<()>,
}

/// A connection's place; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    number: u64,
    arrivals: Arrivals,
    leave: oneshot::Receiver<()>,
}

impl Arrivals {
    /// Lets a connection of `from` in, another one out if there are too many.
    pub(super) fn admit(&self, from: IpAddr) -> Arrival {
        let (stay, leave) = oneshot::channel();
        let mut held = self.lock();
        if held.waiting.len() >= MOST
            && let Some(number) = held.dispensable()
        {
            held.waiting.remove(&number);
        }
        let number = held.next;
        held.next += 1;
        let waiting = Waiting {
            from,
            has_spoken: false,
            _stay: stay,
        };
        held.waiting.insert(number, waiting);
        drop(held);
        Arrival {
            number,
            arrivals: self.clone(),
            leave,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Who makes room: the oldest of the address that holds most, silent ones first.
    fn dispensable(&self) -> Option<u64> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for one in self.waiting.values() {
            *counts.entry(one.from).or_default() += 1;
        }
        let most = counts.values().max().copied()?;
        let crowd = |one: &Waiting| counts.get(&one.from) == Some(&most);
        let candidates = self.waiting.iter().filter(|(_, one)| crowd(one));
        let oldest = candidates.min_by_key(|(number, one)| (one.has_spoken, **number));
        oldest.map(|(number, _)| *number)
    }
}

impl Arrival {
    /// Its first bytes are there.
    pub(super) fn has_spoken(&self) {
        if let Some(own) = self.arrivals.lock().waiting.get_mut(&self.number) {
            own.has_spoken = true;
        }
    }

    /// Resolves when it has to make room.
    pub(super) async fn evicted(&mut self) {
        // The sender is never used, only dropped.
        let _ = (&mut self.leave).await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn is_evicted(arrival: &mut Arrival) -> bool {
        arrival.leave.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_silent_one_of_the_largest_crowd_makes_room() {
        let arrivals = Arrivals::default();
        let mut other: Vec<_> = (0..3).map(|_| arrivals.admit(address(2))).collect();
        let mut crowd: Vec<_> = (3..MOST).map(|_| arrivals.admit(address(1))).collect();
        crowd[0].has_spoken();
        let mut newest: Vec<_> = (0..10).map(|_| arrivals.admit(address(1))).collect();
        assert!(!other.iter_mut().any(is_evicted));
        assert!(!newest.iter_mut().any(is_evicted));
        let gone: Vec<_> = crowd.iter_mut().map(is_evicted).collect();
        assert!(!gone[0] && gone[1..11].iter().all(|gone| *gone));
        assert!(!gone[11..].iter().any(|gone| *gone));
    }

    #[test]
    fn when_all_have_spoken_the_oldest_makes_room_and_places_are_given_back() {
        let arrivals = Arrivals::default();
        let mut all: Vec<_> = (0..MOST).map(|_| arrivals.admit(address(1))).collect();
        all.iter().for_each(Arrival::has_spoken);
        let newest = arrivals.admit(address(3));
        assert!(is_evicted(&mut all[0]) && !is_evicted(&mut all[1]));
        assert_eq!(arrivals.lock().waiting.len(), MOST);
        drop((all, newest));
        assert!(arrivals.lock().waiting.is_empty());
    }
}
