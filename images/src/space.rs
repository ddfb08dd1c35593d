//! The room on the disk for blobs that are on their way.
//!
//! Called by: [`crate::blobs`], before a blob is written. Without this a registry fills the disk up to its last byte, and
//! the records of pods cannot be written.
//! Invariants: a blob is begun only if all of it fits beside what running transfers still expect and a reserve; what has
//! arrived or will not arrive is expected no longer.
//! Not here: unpacked layers, whose sizes nobody knows before.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// What stays free for everything else on the file system, at most. Bytes.
const RESERVE_BYTES: u64 = 1 << 30;
/// The reserve of a small file system, as a part of it.
const RESERVE_PART: u64 = 50;

/// Bytes that running transfers still expect.
#[derive(Debug, Default)]
pub(crate) struct Expected(AtomicU64);

/// The bytes that one blob still expects.
#[derive(Debug)]
pub(crate) struct Reservation {
    of: Arc<Expected>,
    left: u64,
}

impl Expected {
    /// Reserves room for `bytes` on the file system of `directory`. Blocking. Errors: [`Error::DiskFull`] if there is too
    /// little.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        directory: &Path,
        bytes: u64,
    ) -> Result<Reservation, Error> {
        let failed = |errno: rustix::io::Errno| Error::io("look at", directory, errno.into());
        let found = rustix::fs::statvfs(directory).map_err(failed)?;
        let (free, whole) = (found.f_bavail, found.f_blocks);
        let free = free.saturating_mul(found.f_frsize);
        let reserve = (whole.saturating_mul(found.f_frsize) / RESERVE_PART).min(RESERVE_BYTES);
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation {
            of: self.clone(),
            left: bytes,
        };
        let needed = bytes.saturating_add(before).saturating_add(reserve);
        // An empty blob takes no room, and neither does a file system that does not know its size.
        if needed <= free || bytes == 0 || whole == 0 {
            return Ok(reservation);
        }
        let text = format!(
            "{free} bytes are free, the blob takes {bytes}, other transfers expect {before}, and {reserve} stay free"
        );
        Err(Error::DiskFull {
            operation: "store a blob in",
            path: directory.to_owned(),
            source: io::Error::new(io::ErrorKind::StorageFull, text),
        })
    }
}

impl Reservation {
    /// `bytes` are on the disk now.
    pub(crate) fn has_arrived(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        self.of.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.left, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_is_on_its_way_counts_until_it_has_arrived_or_is_given_up() {
        let directory = std::env::temp_dir();
        let found = rustix::fs::statvfs(&directory).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let expected = Arc::new(Expected::default());
        let of = |bytes| expected.reserve(&directory, bytes);
        let refused = of(free).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exhausted);
        assert_eq!(expected.0.load(Ordering::Relaxed), 0, "nothing stays of it");
        // The file system is in use meanwhile: all is by halves.
        let mut first = of(free / 2).unwrap();
        of(free / 2).unwrap_err();
        first.has_arrived(free);
        assert_eq!(expected.0.load(Ordering::Relaxed), 0);
        let second = of(free / 2).unwrap();
        drop(first);
        of(free / 2).unwrap_err();
        drop(second);
        of(free / 2).unwrap();
    }
}
