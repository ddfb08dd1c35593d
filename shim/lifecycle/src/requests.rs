//! Limits the memory that the requests of all sandboxes and containers occupy: labels, annotations, environments,
//! arguments, mounts; and what images add to those of containers.
//!
//! Called by: the code that admits a sandbox or a container, and recovery. The size of a message bounds each request;
//! this bounds all of them together, because each stays in memory and is repeated in lists.
//! Invariants: a share is released when its sandbox or container is gone; the requests of one namespace of Kubernetes hold no
//! more than is left for all others, so that each that comes later still gets some; recovery always gets its shares, and they
//! count.
//! Must not know: the contents of a request.

use std::io;

use coracle_streaming::{Budget, Share};
use serde::Serialize;

use crate::error::{Error, Kind};

/// The bytes of all requests.
#[derive(Debug)]
pub struct Requests {
    budget: Budget,
}

impl Requests {
    /// No requests yet, and at most `limit` bytes of new ones.
    pub fn new(limit: u64) -> Requests {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let budget = Budget::exact(limit);
        Requests { budget }
    }

    /// Counts a new request of a pod in `namespace`. Errors: Exhausted when all requests together would be too large, or
    /// those of the namespace larger than what is left for others.
    pub fn take(&self, namespace: &str, request: &impl Serialize) -> Result<Share, Error> {
        let bytes = size(request);
        let mut share = self.budget.share_of(namespace);
        if share.covers(bytes) {
            return Ok(share);
        }
        let (all, own) = self.budget.taken(namespace);
        let text = format!(
            "it holds {bytes} bytes, beside {own} of namespace {namespace:?} and {all} of all sandboxes and containers; \
             sandbox.all_requests_bytes is {}, and no namespace holds more than is left for others; remove pods or \
             containers that have ended, or raise it",
            self.budget.total()
        );
        Err(Error::new(Kind::Exhausted, text))
    }

    /// Counts a request that was admitted before.
    pub fn take_over(&self, namespace: &str, request: &impl Serialize) -> Share {
        let mut share = self.budget.share_of(namespace);
        share.take_over(size(request));
        share
    }
}

/// The size of a request in its record. Bytes.
fn size(request: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Records store requests as JSON, so serializing cannot fail.
    let _ = serde_json::to_writer(&mut count, request);
    count.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn all_requests_together_are_bounded_and_a_dropped_share_makes_room() {
        let requests = Requests::new(200);
        let text = "x".repeat(40);
        assert_eq!(size(&text), 42);
        let first = requests.take("a", &text).unwrap();
        let _second = requests.take("a", &text).unwrap();
        let refused = requests.take("a", &text).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exhausted);
        let text_of = refused.to_string();
        for fact in ["42 bytes", "84 of", "\"a\"", "all_requests_bytes is 200"] {
            assert!(text_of.contains(fact), "{text_of}");
        }
        requests.take("a", &"small").unwrap();
        drop(first);
        requests.take("a", &text).unwrap();
    }

    #[test]
    fn a_namespace_that_takes_all_it_gets_leaves_room_for_the_next_ones() {
        let requests = Requests::new(4_000);
        let text = "x".repeat(98);
        let all_of = |namespace: &str| -> Vec<Share> {
            std::iter::from_fn(|| requests.take(namespace, &text).ok()).collect()
        };
        let held = ["greedy", "other", "third"].map(all_of);
        assert_eq!(held.each_ref().map(Vec::len), [20, 10, 5]);
        drop(held);
        assert_eq!(requests.budget.taken("greedy"), (0, 0));
    }

    #[test]
    fn a_recovered_request_is_always_admitted_and_counts() {
        let requests = Requests::new(100);
        let found: Vec<Share> = (0..3)
            .map(|_| requests.take_over("a", &"y".repeat(40)))
            .collect();
        requests.take("a", &"").unwrap_err();
        requests.take("b", &"").unwrap_err();
        drop(found);
        requests.take("a", &"y".repeat(40)).unwrap();
        assert_eq!(requests.budget.taken("a"), (0, 0));
    }
}
