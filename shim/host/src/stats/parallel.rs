//! Measures many objects on several processors.
//!
//! Called by: `stats`, on a blocking thread, for requests about all pods of a node. Invariants: the results are in the order of
//! the objects; few objects, as of one pod, take no thread; the threads end with the call.
//! Must not know: what is measured.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};

/// How many objects a thread is worth: measuring them takes longer than making it.
const LEAST: usize = 64;
/// Most threads: the others of a large node are for its pods.
const MOST: usize = 4;

/// What `work` gives for all of `objects`: it gets a part of them and the number of parts.
pub(super) fn map<T: Send, R: Send>(
    objects: Vec<T>,
    work: impl Fn(Vec<T>, usize) -> Vec<R> + Sync,
) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let parts = processors.min(MOST).min(objects.len() / LEAST).max(1);
    map_in(parts, objects, work)
}

fn map_in<T: Send, R: Send>(
    parts: usize,
    objects: Vec<T>,
    work: impl Fn(Vec<T>, usize) -> Vec<R> + Sync,
) -> Vec<R> {
    let size = objects.len().div_ceil(parts).max(1);
    let mut rest = objects;
    let mut others = Vec::new();
    while rest.len() > size {
        others.push(Mutex::new(rest.split_off(rest.len() - size)));
    }
    let do_one = |part: &Mutex<Vec<T>>| {
        let objects = std::mem::take(&mut *part.lock().unwrap_or_else(PoisonError::into_inner));
        work(objects, parts)
    };
    thread::scope(|scope| {
        let begun: Vec<_> = others
            .iter()
            .map(|part| {
                let thread = thread::Builder::new().name("stats".to_owned());
                (part, thread.spawn_scoped(scope, || do_one(part)))
            })
            .collect();
        let mut all = work(rest, parts);
        for (part, thread) in begun.into_iter().rev() {
            all.extend(match thread.map(ScopedJoinHandle::join) {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                // The node has no thread left: this one does it.
                Err(_) => do_one(part),
            });
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_are_in_the_order_of_the_objects() {
        for parts in 1..=5 {
            for count in [0, 1, 2, 7, 64, 65, 1_000] {
                let doubled = map_in(parts, (0..count).collect(), |part: Vec<u32>, of| {
                    assert_eq!(of, parts);
                    part.into_iter().map(|number| 2 * number).collect()
                });
                let expected: Vec<u32> = (0..count).map(|number| 2 * number).collect();
                assert_eq!(doubled, expected, "{count} in {parts}");
            }
        }
    }

    #[test]
    fn few_take_no_thread() {
        let own = thread::current().id();
        let at = map(vec![(); 2 * LEAST - 1], |part, _| {
            vec![thread::current().id(); part.len()]
        });
        assert!(at.iter().all(|thread| *thread == own));
    }
}
