//! Connections that have not sent a valid request yet: how many may exist, and which one is closed to admit the next.
//!
//! Called by: [`super::server`], for each connection. Invariants: at most [`MAX_PENDING`] exist; a new one is always
//! admitted, and evicts another one of the address that has the most: the oldest of those that have sent nothing, or of
//! those that have sent something, whichever are more. So neither many silent connections nor many that send at once have
//! an honest one evicted before its own turn, which comes when more than a hundred have come after it.
//! Must not know: requests.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Most connections that have not sent a valid request yet.
pub(super) const MAX_PENDING: usize = 256;

/// The pending connections, by number; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingConnections(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    from: IpAddr,
    has_sent: bool,
    /// Dropped to evict it.
    _evict: oneshot::Sender<()>,
}

/// A pending connection's entry; removed when it is dropped.
#[derive(Debug)]
pub(super) struct PendingConnection {
    number: u64,
    pending: PendingConnections,
    evict: oneshot::Receiver<()>,
}

impl PendingConnections {
    /// Adds a connection of `from`; evicts another one if there are too many.
    pub(super) fn admit(&self, from: IpAddr) -> PendingConnection {
        let (evict_sender, evict) = oneshot::channel();
        let mut state = self.lock();
        if state.waiting.len() >= MAX_PENDING
            && let Some(number) = state.eviction_candidate()
        {
            state.waiting.remove(&number);
        }
        let number = state.next;
        state.next += 1;
        let waiting = Entry {
            from,
            has_sent: false,
            _evict: evict_sender,
        };
        state.waiting.insert(number, waiting);
        drop(state);
        PendingConnection {
            number,
            pending: self.clone(),
            evict,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The one to evict: of the address that has the most, the oldest of the larger kind, silent or not.
    fn eviction_candidate(&self) -> Option<u64> {
        let mut counts: HashMap<IpAddr, [usize; 2]> = HashMap::new();
        for one in self.waiting.values() {
            counts.entry(one.from).or_default()[usize::from(one.has_sent)] += 1;
        }
        let most = counts
            .into_iter()
            .max_by_key(|(_, [silent, sent])| silent + sent);
        let (from, [silent, sent]) = most?;
        let has_sent = sent > silent;
        let mut candidates = self.waiting.iter();
        let oldest = candidates.find(|(_, one)| one.from == from && one.has_sent == has_sent);
        oldest.map(|(number, _)| *number)
    }
}

impl PendingConnection {
    /// Its first bytes arrived.
    pub(super) fn has_sent(&self) {
        if let Some(own) = self.pending.lock().waiting.get_mut(&self.number) {
            own.has_sent = true;
        }
    }

    /// Resolves when it is evicted.
    pub(super) async fn evicted(&mut self) {
        // The sender is never used, only dropped.
        let _ = (&mut self.evict).await;
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        self.pending.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn is_evicted(entry: &mut PendingConnection) -> bool {
        entry.evict.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_silent_connection_of_the_busiest_address_is_evicted() {
        let pending = PendingConnections::default();
        let mut other: Vec<_> = (0..3).map(|_| pending.admit(address(2))).collect();
        let mut crowd: Vec<_> = (3..MAX_PENDING)
            .map(|_| pending.admit(address(1)))
            .collect();
        crowd[0].has_sent();
        let mut newest: Vec<_> = (0..10).map(|_| pending.admit(address(1))).collect();
        assert!(!other.iter_mut().any(is_evicted));
        assert!(!newest.iter_mut().any(is_evicted));
        let gone: Vec<_> = crowd.iter_mut().map(is_evicted).collect();
        assert!(!gone[0] && gone[1..11].iter().all(|gone| *gone));
        assert!(!gone[11..].iter().any(|gone| *gone));
    }

    #[test]
    fn many_that_send_at_once_do_not_have_an_honest_one_evicted_before_it_can_send() {
        let pending = PendingConnections::default();
        let send = |entry: PendingConnection| {
            entry.has_sent();
            entry
        };
        let mut hostile: Vec<_> = (0..MAX_PENDING)
            .map(|_| send(pending.admit(address(1))))
            .collect();
        // A request takes a moment, in which many others come.
        let mut honest = pending.admit(address(1));
        hostile.extend((0..100).map(|_| send(pending.admit(address(1)))));
        assert!(!is_evicted(&mut honest));
        let mut honest = send(honest);
        hostile.extend((0..100).map(|_| send(pending.admit(address(1)))));
        assert!(!is_evicted(&mut honest));
        // Nor do silent ones.
        hostile.extend((0..MAX_PENDING).map(|_| pending.admit(address(1))));
        let mut honest = send(pending.admit(address(1)));
        hostile.extend((0..100).map(|_| pending.admit(address(1))));
        assert!(!is_evicted(&mut honest));
        assert_eq!(pending.lock().waiting.len(), MAX_PENDING);
    }

    #[test]
    fn when_all_have_sent_bytes_the_oldest_is_evicted_and_entries_are_freed() {
        let pending = PendingConnections::default();
        let mut all: Vec<_> = (0..MAX_PENDING)
            .map(|_| pending.admit(address(1)))
            .collect();
        all.iter().for_each(PendingConnection::has_sent);
        let newest = pending.admit(address(3));
        assert!(is_evicted(&mut all[0]) && !is_evicted(&mut all[1]));
        assert_eq!(pending.lock().waiting.len(), MAX_PENDING);
        drop((all, newest));
        assert!(pending.lock().waiting.is_empty());
    }
}
