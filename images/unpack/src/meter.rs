//! Readers that count: the packed bytes of a layer, and the unpacked ones, which are hashed, too.
//!
//! Called by `layer`. Invariants: a stream stops at the first byte that is too many; a decompressor that takes much and
//! gives little is stopped, for it works as long as it is fed. Not here: what the bytes mean.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use crate::Limit;

/// How much a layer may unpack before its ratio is checked. Bytes.
pub const RATIO_FLOOR_BYTES: u64 = 64 << 20;

/// How many packed bytes a layer may have beyond what it unpacks to: frames to skip, tables. Bytes.
const USELESS_BYTES: u64 = 64 << 20;

/// Counts packed bytes, and stops when little comes out of them.
pub(crate) struct Packed<R> {
    inner: R,
    taken: u64,
    given: Rc<Cell<u64>>,
}

impl<R: Read> Packed<R> {
    /// `given` is how many bytes were unpacked from `inner` so far.
    pub(crate) fn new(inner: R, given: Rc<Cell<u64>>) -> Self {
        Self {
            inner,
            taken: 0,
            given,
        }
    }
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let given = self.given.get();
        // Bytes that cannot be compressed are stored, with a little around them.
        let allowed = given.saturating_add(given / 64);
        if self.taken > allowed.saturating_add(USELESS_BYTES) {
            let text = format!(
                "its compressed stream has {} bytes that unpack to {given}",
                self.taken
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let count = self.inner.read(buffer)?;
        self.taken += count as u64;
        Ok(count)
    }
}

/// Why a [`Metered`] reader stops.
#[derive(Debug, thiserror::Error)]
#[error("limit {0:?}")]
pub(crate) struct Stop(pub(crate) Limit);

/// Counts and hashes uncompressed bytes.
pub(crate) struct Metered<R> {
    inner: R,
    hasher: Sha256,
    seen: Rc<Cell<u64>>,
    allowed: u64,
    ratio_allowed: u64,
}

impl<R: Read> Metered<R> {
    /// At most `allowed` bytes, and at most `ratio` for each of `packed`. They are counted in `seen`.
    pub(crate) fn new(
        inner: R,
        seen: Rc<Cell<u64>>,
        allowed: u64,
        packed: u64,
        ratio: u64,
    ) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            seen,
            allowed,
            ratio_allowed: packed.saturating_mul(ratio).max(RATIO_FLOOR_BYTES),
        }
    }

    /// How many bytes passed, and their SHA-256 as 64 digits.
    pub(crate) fn finish(self) -> (u64, String) {
        let digest = self.hasher.finalize();
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (self.seen.get(), hex)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let seen = self.seen.get() + count as u64;
        self.seen.set(seen);
        if seen > self.allowed {
            return Err(io::Error::other(Stop(Limit::Bytes)));
        }
        if seen > self.ratio_allowed {
            return Err(io::Error::other(Stop(Limit::Ratio)));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
