//! What the walk through a layer may hold: the names in the directories above it, and the first name of each file that has
//! several. An image's author chooses how many these are, and how long; the daemon holds them.
//!
//! Called by: [`super::layer`]. Invariant: no more than [`MOST`] is held at a time. Not here: the walk.

use std::io;

/// Most of it. Bytes.
const MOST: usize = 64 << 20;
/// What a name takes beside its text. Bytes.
const NAME: usize = 64;

/// What may still be held.
pub(super) struct Room(usize);

impl Room {
    /// All of it.
    pub(super) fn new() -> Self {
        Self(MOST)
    }

    /// Holds `name`. Errors: there is too much.
    pub(super) fn hold(&mut self, name: &[u8]) -> io::Result<()> {
        let left = self.0.checked_sub(name.len() + NAME);
        self.0 = left.ok_or_else(|| {
            io::Error::other(format!(
                "it has more names in a directory, or files with several names, than {} MiB hold: it is exported only as it was received (images.keep_blobs = true keeps what is pulled from then on)",
                MOST >> 20
            ))
        })?;
        Ok(())
    }

    /// Holds `name` no longer.
    pub(super) fn release(&mut self, name: &[u8]) {
        self.0 += name.len() + NAME;
    }
}
