//! Places for work that others may make slow, shared fairly by those who ask.
//!
//! Called by: the pull, for its own place ([`crate::pull`]), and lookups of names. Each place is for a tenant (a
//! namespace) and in a group (a registry, a zone of names).
//! Invariants: nobody has more places than are left free for others, of all and of a group, so that each tenant that
//! comes later still gets some; a place that becomes free goes to the tenant with the fewest; whoever leaves
//! the queue costs nobody a place. Not here: what is done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// How many places there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    /// Of all together.
    pub all: usize,
    /// Of one tenant, even if all others are free.
    pub of_tenant: usize,
    /// Of one group, whoever has them.
    pub of_group: usize,
}

/// The places, and who has them.
#[derive(Debug)]
pub(crate) struct Shares {
    most: Most,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// An entry for each place that is taken.
    taken: Vec<Request>,
    /// In the order of their coming.
    waiting: Vec<Waiting>,
}

/// For whom and where a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    tenant: Arc<str>,
    group: Arc<str>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    turn: oneshot::Sender<Place>,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Arc<Shares>,
    request: Request,
}

impl Shares {
    pub(crate) fn new(most: Most) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { most, state })
    }

    /// Waits for a place of `tenant` in `group`; it takes its turn in the queue at the first poll. Errors: none, as long as
    /// the queue exists.
    pub(crate) async fn place(
        self: &Arc<Self>,
        tenant: &str,
        group: &str,
    ) -> Result<Place, RecvError> {
        let request = Request {
            tenant: tenant.into(),
            group: group.into(),
        };
        let (turn, mine) = oneshot::channel();
        self.lock().waiting.push(Waiting { request, turn });
        self.hand_out();
        mine.await
    }

    /// Gives what is free to those who wait and may have it.
    fn hand_out(self: &Arc<Self>) {
        let mut refused = Vec::new();
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.turn.is_closed());
        while let Some(next) = state.next(self.most) {
            let Waiting { request, turn } = state.waiting.remove(next);
            state.taken.push(request.clone());
            let shares = self.clone();
            // It left just now: its place is given back below, without the lock.
            refused.extend(turn.send(Place { shares, request }).err());
        }
        drop(state);
        drop(refused);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many places are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.lock().taken.len()
    }
}

impl State {
    /// Who is next in the queue: of those that may have a place, the first one of the tenant that has the fewest.
    fn next(&self, most: Most) -> Option<usize> {
        let waiting = self.waiting.iter().enumerate();
        let may = waiting.filter(|(_, waiting)| self.may_have(&waiting.request, most));
        let next =
            may.min_by_key(|(_, waiting)| self.count(|own| own.tenant == waiting.request.tenant));
        next.map(|(place, _)| place)
    }

    fn may_have(&self, request: &Request, most: Most) -> bool {
        let own = self.count(|taken| taken.tenant == request.tenant);
        let of_group = self.count(|taken| taken.group == request.group);
        let own_of_group = self.count(|taken| taken == request);
        own < most.of_tenant
            && own < most.all.saturating_sub(self.taken.len())
            && own_of_group < most.of_group.saturating_sub(of_group)
    }

    fn count(&self, is_counted: impl Fn(&Request) -> bool) -> usize {
        self.taken.iter().filter(|taken| is_counted(taken)).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shares.lock();
        if let Some(own) = state.taken.iter().position(|taken| *taken == self.request) {
            state.taken.swap_remove(own);
        }
        drop(state);
        self.shares.hand_out();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;

    const MOST: Most = Most {
        all: 64,
        of_tenant: 16,
        of_group: 32,
    };

    type Asked = BoxFuture<'static, Result<Place, RecvError>>;

    fn ask(shares: &Arc<Shares>, tenant: &str, group: &str) -> Asked {
        let (shares, tenant, group) = (shares.clone(), tenant.to_owned(), group.to_owned());
        let mut asked = async move { shares.place(&tenant, &group).await }.boxed();
        // In the queue, and perhaps granted: it is polled again by `now`.
        match (&mut asked).now_or_never() {
            Some(place) => std::future::ready(place).boxed(),
            None => asked,
        }
    }

    fn now(asked: &mut Asked) -> Option<Place> {
        asked.now_or_never().map(Result::unwrap)
    }

    /// As many as `tenant` gets in registries of its own.
    fn all_of(shares: &Arc<Shares>, tenant: &str) -> Vec<Place> {
        let asked = (0..99).map(|number| ask(shares, tenant, &format!("{tenant}{number}")));
        asked.filter_map(|mut asked| now(&mut asked)).collect()
    }

    #[test]
    fn a_tenant_with_many_registries_leaves_places_for_each_that_comes_later() {
        let shares = Shares::new(MOST);
        let mut held = Vec::new();
        for (number, most) in [16, 16, 16, 8, 4, 2, 1, 1].into_iter().enumerate() {
            let tenant = format!("tenant{number}");
            let places = all_of(&shares, &tenant);
            assert_eq!(places.len(), most, "{tenant}");
            held.push(places);
        }
        assert_eq!(shares.taken(), 64);
        drop(held);
        assert_eq!(shares.taken(), 0);
    }

    #[test]
    fn a_slow_registry_has_a_part_of_the_places_and_each_tenant_a_part_of_those() {
        let shares = Shares::new(MOST);
        let of = |tenant: &str| {
            let asked = (0..99).map(|_| ask(&shares, tenant, "slow.example"));
            let places: Vec<Place> = asked.filter_map(|mut asked| now(&mut asked)).collect();
            places
        };
        let held: Vec<_> = ["a", "b", "c"].map(of).into_iter().collect();
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [16, 8, 4]);
        assert!(now(&mut ask(&shares, "d", "quick.example")).is_some());
    }

    #[test]
    fn a_free_place_goes_to_the_tenant_with_the_fewest_and_then_to_the_first() {
        let shares = Shares::new(Most { all: 4, ..MOST });
        let mut held = all_of(&shares, "a");
        held.extend(all_of(&shares, "b"));
        held.extend(all_of(&shares, "c"));
        assert_eq!(held.len(), 4);
        let mut again = ask(&shares, "a", "a");
        let (mut first, mut second) = (ask(&shares, "d", "d"), ask(&shares, "e", "e"));
        assert!(now(&mut first).is_none());
        held.pop();
        let first = now(&mut first).unwrap();
        assert!(now(&mut again).is_none() && now(&mut second).is_none());
        drop(first);
        assert!(now(&mut second).is_some());
    }

    #[test]
    fn who_leaves_the_queue_costs_nobody_a_place() {
        let shares = Shares::new(Most { all: 1, ..MOST });
        let held = now(&mut ask(&shares, "a", "a")).unwrap();
        let left = ask(&shares, "b", "b");
        let granted = ask(&shares, "c", "c");
        drop(left);
        drop(held);
        // It has its place, and has not looked.
        assert_eq!(shares.taken(), 1);
        drop(granted);
        assert_eq!(shares.taken(), 0);
        assert!(now(&mut ask(&shares, "d", "d")).is_some());
    }
}
