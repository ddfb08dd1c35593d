//! Limits the memory that the requests of all sandboxes and containers occupy: labels, annotations, environments,
//! arguments, mounts; and what images add to those of containers.
//!
//! Called by: the code that admits a sandbox or a container, and recovery. The size of a message bounds each request;
//! this bounds all of them together, because each stays in memory and is repeated in lists.
//! Invariants: a share is released when its sandbox or container is gone; recovery always gets its shares, and they
//! count.
//! Must not know: the contents of a request.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::error::{Error, Kind};

/// The bytes of all requests.
#[derive(Debug)]
pub struct Requests {
    held: AtomicU64,
    limit: u64,
}

/// The bytes of one request, counted until this is dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Requests>,
    bytes: u64,
}

impl Requests {
    /// No requests yet, and at most `limit` bytes of new ones.
    pub fn new(limit: u64) -> Arc<Requests> {
        let held = AtomicU64::new(0);
        Arc::new(Requests { held, limit })
    }

    /// Counts a new request. Errors: Exhausted when all requests together would be too large.
    pub fn take(self: &Arc<Self>, request: &impl Serialize) -> Result<Share, Error> {
        let share = self.take_over(request);
        let held = self.held.load(Ordering::Relaxed);
        if held <= self.limit {
            return Ok(share);
        }
        let text = format!(
            "it holds {} bytes, those of all sandboxes and containers then {held}; \
             sandbox.all_requests_bytes is {}",
            share.bytes, self.limit
        );
        Err(Error::new(Kind::Exhausted, text))
    }

    /// Counts a request that was admitted before.
    pub fn take_over(self: &Arc<Self>, request: &impl Serialize) -> Share {
        let bytes = size(request);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Share {
            of: Arc::clone(self),
            bytes,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The size of a request in its record. Bytes.
fn size(request: &impl Serialize) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
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
        let requests = Requests::new(100);
        let text = "x".repeat(40);
        assert_eq!(size(&text), 42);
        let first = requests.take(&text).unwrap();
        let _second = requests.take(&text).unwrap();
        let refused = requests.take(&text).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exhausted);
        let text_of = refused.to_string();
        for fact in ["42 bytes", "126", "all_requests_bytes is 100"] {
            assert!(text_of.contains(fact), "{text_of}");
        }
        requests.take(&"small").unwrap();
        drop(first);
        requests.take(&text).unwrap();
    }

    #[test]
    fn a_recovered_request_is_always_admitted_and_counts() {
        let requests = Requests::new(50);
        let found: Vec<Share> = (0..3)
            .map(|_| requests.take_over(&"y".repeat(40)))
            .collect();
        requests.take(&"").unwrap_err();
        drop(found);
        requests.take(&"y".repeat(40)).unwrap();
        assert_eq!(requests.held.load(Ordering::Relaxed), 0);
    }
}
