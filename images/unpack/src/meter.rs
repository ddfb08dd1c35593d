//! A reader that counts and hashes its bytes.
//!
//! Called by `layer`. Invariant: a stream stops at the first byte that is too many. Not here: what the bytes mean.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::Limit;

/// How much a layer may unpack before its ratio is checked. Bytes.
pub const RATIO_FLOOR_BYTES: u64 = 64 << 20;

/// Why a [`Metered`] reader stops.
#[derive(Debug, thiserror::Error)]
#[error("limit {0:?}")]
pub(crate) struct Stop(pub(crate) Limit);

/// Counts and hashes uncompressed bytes.
pub(crate) struct Metered<R> {
    inner: R,
    hasher: Sha256,
    seen: u64,
    allowed: u64,
    ratio_allowed: u64,
}

impl<R: Read> Metered<R> {
    /// At most `allowed` bytes, and at most `ratio` for each of `packed`.
    pub(crate) fn new(inner: R, allowed: u64, packed: u64, ratio: u64) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            seen: 0,
            allowed,
            ratio_allowed: packed.saturating_mul(ratio).max(RATIO_FLOOR_BYTES),
        }
    }

    /// How many bytes passed, and their SHA-256 as 64 digits.
    pub(crate) fn finish(self) -> (u64, String) {
        let digest = self.hasher.finalize();
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (self.seen, hex)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.seen += count as u64;
        if self.seen > self.allowed {
            return Err(io::Error::other(Stop(Limit::Bytes)));
        }
        if self.seen > self.ratio_allowed {
            return Err(io::Error::other(Stop(Limit::Ratio)));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
