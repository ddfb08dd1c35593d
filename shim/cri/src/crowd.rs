//! How many connections the CRI socket has: so many at all, and so many of one process.
//!
//! Called by: [`super::socket`] for each connection that it accepts. Each costs a descriptor and memory, and whoever can
//! connect is root; but a client that runs away must not keep the kubelet from its runtime.
//! Invariants: a place is free again when its connection ends; one process never has them all.
//! Must not know: what is said on a connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most connections. The kubelet has two or three, a command one.
const MOST: usize = 1024;
/// Most connections of one process.
const MOST_OF_ONE: usize = 512;

/// The connections that there are; a clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd(Arc<Mutex<Count>>);

#[derive(Debug, Default)]
struct Count {
    all: usize,
    /// By the process that connected.
    of: HashMap<i32, usize>,
}

impl Crowd {
    /// A place for a connection of process `pid`. Errors: it gets none; why, for people.
    pub(super) fn place(&self, pid: i32) -> Result<Place, String> {
        let mut count = self.lock();
        if count.all >= MOST {
            return Err(format!(
                "all {MOST} connections that there may be are in use"
            ));
        }
        let own = count.of.get(&pid).copied().unwrap_or(0);
        if own >= MOST_OF_ONE {
            return Err(format!(
                "process {pid} has {own} connections, and one may have {MOST_OF_ONE}"
            ));
        }
        count.all += 1;
        count.of.insert(pid, own + 1);
        drop(count);
        Ok(Place {
            crowd: self.clone(),
            pid,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    pid: i32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.crowd.lock();
        count.all -= 1;
        let own = count.of.get(&self.pid).copied().unwrap_or(0);
        match own {
            0 | 1 => count.of.remove(&self.pid),
            own => count.of.insert(self.pid, own - 1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_has_all_places_and_all_come_back() {
        let crowd = Crowd::default();
        let of = |pid| -> Vec<Place> { (0..MOST).map_while(|_| crowd.place(pid).ok()).collect() };
        let one = of(1);
        assert_eq!(one.len(), MOST_OF_ONE);
        let other = of(2);
        assert_eq!(one.len() + other.len(), MOST);
        let refused = crowd.place(3).err();
        assert_eq!(
            refused.as_deref(),
            Some("all 1024 connections that there may be are in use")
        );
        drop(one);
        assert_eq!(of(3).len(), MOST_OF_ONE);
        drop(other);
        let count = crowd.lock();
        assert_eq!((count.all, count.of.len()), (0, 0));
    }
}
