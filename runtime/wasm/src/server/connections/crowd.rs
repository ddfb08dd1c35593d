//! Which connection makes room for a newcomer where there are as many as there may be.
//!
//! Called by [`super`], which lists each connection and asks for room when somebody waits for it. A client that sends a small
//! request from time to time keeps its connection open; many such must not keep others out.
//! Invariants: a connection with a request under way makes room for nobody; of the others the one does on which nothing has
//! happened for longest, and each is told once.
//! Not here: how many there may be, how a connection is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::activity::Activity;

/// The connections of a server; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    last: u64,
    open: HashMap<u64, Arc<Activity>>,
}

/// A connection that is listed, until this is dropped.
pub(super) struct Listed {
    crowd: Crowd,
    number: u64,
}

impl Crowd {
    /// Lists a connection.
    pub(super) fn enter(&self, activity: &Arc<Activity>) -> Listed {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.open.insert(number, Arc::clone(activity));
        Listed {
            crowd: self.clone(),
            number,
        }
    }

    /// Tells the connection that can be spared best, if there is one, to end. It is told once.
    pub(super) fn make_room(&self) {
        let mut state = self.lock();
        let spared = state.open.iter();
        let spared = spared.filter(|(_, activity)| !activity.idle().is_zero());
        let longest = spared.max_by_key(|(_, activity)| activity.idle());
        let number = longest.map(|(number, _)| *number);
        if let Some(activity) = number.and_then(|number| state.open.remove(&number)) {
            activity.is_spared.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.crowd.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use http::Request;

    use super::super::Active;
    use super::*;
    use crate::server::idle::Idle;
    use crate::server::tests::server;

    #[test]
    fn the_connection_that_is_idle_for_longest_makes_room_and_a_busy_one_never() {
        let crowd = Crowd::default();
        let connections = [(); 4].map(|()| {
            std::thread::sleep(Duration::from_millis(2));
            Arc::new(Activity::new())
        });
        let listed = connections.each_ref().map(|one| crowd.enter(one));
        let idle = Arc::new(Idle::new(&server(), false));
        let begin = |at: usize| -> Active {
            let request = idle.request(&Request::new(()));
            connections[at].enter(request)
        };
        let busy = begin(0);
        let is_told = |at: usize| {
            let told = pin!(connections[at].is_spared.notified());
            told.poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        std::thread::sleep(Duration::from_millis(2));
        // What was used just now is idle for the shortest time.
        drop(begin(1));
        std::thread::sleep(Duration::from_millis(2));
        for spared in [2, 3, 1] {
            crowd.make_room();
            assert!(is_told(spared), "{spared}");
        }
        crowd.make_room();
        assert!(!(0..4).any(is_told));
        drop(busy);
        std::thread::sleep(Duration::from_millis(2));
        crowd.make_room();
        assert!(is_told(0));
        drop(listed);
        assert!(crowd.lock().open.is_empty());
    }
}
