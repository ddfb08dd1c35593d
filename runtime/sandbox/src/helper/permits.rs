//! How many helpers run at a time, how much memory they have together, and whose turn it is.
//!
//! Called in the daemon by the compile cache and for unpackers, before a helper starts.
//! Invariants: all helpers of the node share one pool; a kind of them has neither all processes nor the memory that one helper
//! of the others needs, so that no kind waits for all of another; of one kind the next is the first of the tenant that runs the
//! fewest, then of the one whose last turn is longest ago, and nobody overtakes it; a kind that runs nothing is overtaken by none that came later; whoever leaves the queue
//! costs nobody a turn.
//! It must not know what a helper does, or what tenants are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use coracle_spec::error::{Error, Kind, Result};

/// The unit in which memory is counted, in bytes.
const UNIT: u64 = 1 << 20;

/// Bounds the number and memory of the node's helpers. Clones share one pool.
#[derive(Clone, Debug)]
pub struct Permits {
    pool: Arc<Pool>,
    part: Part,
}

/// The right to run one helper; dropping returns it.
#[derive(Debug)]
pub struct Permit {
    pool: Arc<Pool>,
    request: Request,
}

/// All helpers of the node.
#[derive(Debug)]
struct Pool {
    most: Part,
    kinds: AtomicU64,
    state: Mutex<State>,
}

/// What a kind of helpers may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    kind: u64,
    processes: usize,
    units: u64,
}

/// One helper, and for whom it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    part: Part,
    tenant: Arc<str>,
    units: u64,
}

impl Request {
    /// Whose turn it takes.
    fn of(&self) -> (u64, Arc<str>) {
        (self.part.kind, Arc::clone(&self.tenant))
    }
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Request>,
    /// In the order of their coming.
    waiting: Vec<Waiting>,
    /// How many have had a turn.
    turns: u64,
    /// The last turn of each tenant that has helpers or waits for some, by kind.
    last_turns: HashMap<(u64, Arc<str>), u64>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    turn: oneshot::Sender<Permit>,
}

impl Permits {
    /// A pool for `processes` helpers with `memory_bytes` of address space together, at least one process and one unit.
    pub fn new(processes: usize, memory_bytes: u64) -> Self {
        let most = Part {
            kind: 0,
            processes: processes.max(1),
            units: (memory_bytes / UNIT).max(1),
        };
        let pool = Pool {
            most,
            kinds: AtomicU64::new(1),
            state: Mutex::default(),
        };
        Self {
            pool: Arc::new(pool),
            part: most,
        }
    }

    /// The same pool for one kind of helpers. They have all but one of the processes, and leave `others_bytes` of the memory,
    /// which is what one helper of another kind needs. One that is larger than the rest runs without others of its kind.
    #[must_use]
    pub fn of_a_kind(&self, others_bytes: u64) -> Self {
        let most = self.pool.most;
        let part = Part {
            kind: self.pool.kinds.fetch_add(1, Ordering::Relaxed),
            processes: most.processes.saturating_sub(1).max(1),
            units: most.units.saturating_sub(others_bytes.div_ceil(UNIT)),
        };
        Self {
            pool: Arc::clone(&self.pool),
            part,
        }
    }

    /// Waits until a helper of `tenant` with `memory_bytes` of address space may run. A helper larger than the pool waits for
    /// all of it.
    ///
    /// Errors: none in a running daemon.
    pub async fn take(&self, tenant: &str, memory_bytes: u64) -> Result<Permit> {
        let request = Request {
            part: self.part,
            tenant: tenant.into(),
            units: memory_bytes.div_ceil(UNIT).clamp(1, self.pool.most.units),
        };
        // Dropped after the receiver: whoever leaves may have been in the way of others.
        let _leaving = Leaving(&self.pool);
        let (turn, mine) = oneshot::channel();
        self.pool.lock().waiting.push(Waiting { request, turn });
        self.pool.hand_out();
        mine.await
            .map_err(|e| Error::with(Kind::Bug, "wait for a permit for a helper process", e))
    }
}

/// Lets the next ones go when it is dropped.
struct Leaving<'a>(&'a Arc<Pool>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.hand_out();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let own = state.running.iter().position(|one| *one == self.request);
        if let Some(own) = own {
            state.running.swap_remove(own);
        }
        drop(state);
        self.pool.hand_out();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives permits to those who wait and may run.
    fn hand_out(self: &Arc<Self>) {
        let mut refused = Vec::new();
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.turn.is_closed());
        while let Some(next) = state.next(self.most) {
            let Waiting { request, turn } = state.waiting.remove(next);
            state.record_turn(&request);
            let pool = Arc::clone(self);
            // It left just now: its permit is given back below, without the lock.
            refused.extend(turn.send(Permit { pool, request }).err());
        }
        state.forget_turns();
        drop(state);
        drop(refused);
    }
}

impl State {
    /// Who is next in the queue, if somebody may run.
    fn next(&self, most: Part) -> Option<usize> {
        let firsts = self.firsts();
        let mut earlier: Vec<&Request> = Vec::new();
        for place in firsts {
            let request = &self.waiting[place].request;
            if self.may_run(request, &earlier, most) {
                return Some(place);
            }
            if self.of_kind(request).next().is_none() {
                earlier.push(request);
            }
        }
        None
    }

    /// Of each kind the place of whoever is next, in the order of their coming.
    fn firsts(&self) -> Vec<usize> {
        let mut firsts: BTreeMap<u64, (usize, u64, usize)> = BTreeMap::new();
        for (place, Waiting { request, .. }) in self.waiting.iter().enumerate() {
            let own = self.of_kind(request);
            let own = own.filter(|one| one.tenant == request.tenant).count();
            let last = self.last_turns.get(&request.of()).copied().unwrap_or(0);
            let first = firsts.entry(request.part.kind);
            let first = first.or_insert((own, last, place));
            *first = (*first).min((own, last, place));
        }
        let mut places: Vec<usize> = firsts.into_values().map(|(.., place)| place).collect();
        places.sort_unstable();
        places
    }

    /// Whether it fits beside what runs, and beside the first helpers of other kinds that came `earlier`.
    fn may_run(&self, request: &Request, earlier: &[&Request], most: Part) -> bool {
        let sum = |units: &mut dyn Iterator<Item = u64>| units.fold(0, u64::saturating_add);
        let kind = self.of_kind(request).count();
        let of_kind = sum(&mut self.of_kind(request).map(|one| one.units));
        let all = self.running.iter().chain(earlier.iter().copied());
        let all = sum(&mut all.map(|one| one.units));
        let (part, units) = (request.part, request.units);
        kind < part.processes
            && self.running.len() + earlier.len() < most.processes
            && (kind == 0 || of_kind.saturating_add(units) <= part.units)
            && all.saturating_add(units) <= most.units
    }

    fn record_turn(&mut self, request: &Request) {
        self.turns += 1;
        self.last_turns.insert(request.of(), self.turns);
        self.running.push(request.clone());
    }

    /// Forgets the turns of tenants that neither have helpers nor wait for some.
    fn forget_turns(&mut self) {
        let waiting = self.waiting.iter().map(|waiting| &waiting.request);
        let known: HashSet<_> = waiting.chain(&self.running).map(Request::of).collect();
        self.last_turns.retain(|of, _| known.contains(of));
    }

    fn of_kind(&self, request: &Request) -> impl Iterator<Item = &Request> {
        let kind = request.part.kind;
        self.running.iter().filter(move |one| one.part.kind == kind)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asked<'a> = Pin<Box<dyn Future<Output = Result<Permit>> + 'a>>;

    /// In the queue, and perhaps granted: see [`now`].
    fn ask<'a>(permits: &'a Permits, tenant: &'a str, units: u64) -> (Asked<'a>, Option<Permit>) {
        let mut asked: Asked<'a> = Box::pin(permits.take(tenant, units * UNIT));
        let granted = now(&mut asked);
        (asked, granted)
    }

    fn now(asked: &mut Asked<'_>) -> Option<Permit> {
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(granted) => Some(granted.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn permits_bound_number_and_memory_and_are_given_in_order() {
        let permits = Permits::new(3, 4 * UNIT);
        let (_, first) = ask(&permits, "a", 3);
        let (large, none) = ask(&permits, "a", 2);
        assert!(first.is_some() && none.is_none(), "no memory is left");
        let (mut small, none) = ask(&permits, "a", 1);
        assert!(none.is_none(), "it overtook");
        drop(large);
        let _small = now(&mut small).unwrap();
        drop(first);
        let _two = [ask(&permits, "a", 1).1, ask(&permits, "a", 1).1].map(Option::unwrap);
        assert!(ask(&permits, "a", 1).1.is_none(), "a fourth process");
        let one = Permits::new(1, UNIT);
        assert!(
            ask(&one, "a", 100).1.is_some(),
            "more than there is means all of it"
        );
    }

    #[test]
    fn one_kind_never_has_all_processes() {
        let permits = Permits::new(2, 8 * UNIT);
        let (unpackers, compilers) = (permits.of_a_kind(UNIT), permits.of_a_kind(UNIT));
        let (_, first) = ask(&unpackers, "a", 1);
        let (mut second, none) = ask(&unpackers, "a", 8);
        assert!(first.is_some() && none.is_none(), "no process is left");
        // Nor does a waiter of it keep others from the memory.
        let compiler = ask(&compilers, "a", 1).1;
        drop((compiler.expect("waits for unpackers"), first));
        assert!(now(&mut second).is_some());
        let one = Permits::new(1, UNIT).of_a_kind(UNIT);
        assert!(ask(&one, "a", 1).1.is_some());
    }

    #[test]
    fn one_kind_never_has_the_memory_that_another_needs() {
        let permits = Permits::new(4, 8 * UNIT);
        let (compilers, unpackers) = (permits.of_a_kind(UNIT), permits.of_a_kind(4 * UNIT));
        let (_, first) = ask(&compilers, "a", 4);
        let (mut second, none) = ask(&compilers, "a", 4);
        assert!(first.is_some() && none.is_none(), "all memory");
        let unpacking: Vec<_> = std::iter::from_fn(|| ask(&unpackers, "b", 1).1).collect();
        assert_eq!(unpacking.len(), 3, "all processes but one of its kind");
        drop(first);
        assert!(now(&mut second).is_some(), "waits for unpackers");
    }

    #[test]
    fn a_kind_that_runs_nothing_is_not_overtaken_for_ever() {
        let permits = Permits::new(4, 8 * UNIT);
        let (compilers, unpackers) = (permits.of_a_kind(UNIT), permits.of_a_kind(UNIT));
        let mut running: Vec<_> = (0..3).filter_map(|_| ask(&unpackers, "a", 1).1).collect();
        // Larger than what the others leave.
        let (mut large, none) = ask(&compilers, "b", 8);
        assert!(none.is_none());
        for _ in 0..3 {
            let (mut next, none) = ask(&unpackers, "a", 1);
            running.pop();
            assert!(none.is_none() && now(&mut next).is_none(), "it overtook");
        }
        let alone = now(&mut large).unwrap();
        let (mut next, none) = ask(&unpackers, "a", 1);
        assert!(none.is_none());
        drop(alone);
        assert!(now(&mut next).is_some());
    }

    #[test]
    fn a_tenant_that_asks_for_many_comes_after_one_that_asks_for_one() {
        let permits = Permits::new(8, 4 * UNIT).of_a_kind(UNIT);
        let (_, running) = ask(&permits, "a", 2);
        let mut queued: Vec<_> = (0..20).map(|_| ask(&permits, "a", 3).0).collect();
        let (mut other, none) = ask(&permits, "b", 3);
        assert!(none.is_none());
        assert!(queued.iter_mut().all(|asked| now(asked).is_none()));
        drop(running);
        let next = now(&mut other).expect("the next turn is the other one's");
        assert!(queued.iter_mut().all(|asked| now(asked).is_none()));
        drop(next);
        drop(now(&mut queued[0]).expect("then those that wait follow"));
        drop((other, queued));
        let state = permits.pool.lock();
        assert!(state.running.is_empty() && state.last_turns.is_empty());
    }
}
