//! The room on the disk for a blob that is about to arrive.
//!
//! Called by: [`crate::blobs`], before a blob is written. Without this one blob fills the disk up to its last byte, and
//! the records of pods cannot be written.
//! Invariants: a blob is begun only if all of it fits beside a reserve; what other transfers have promised and not sent
//! counts for nothing, or a registry that sends nothing would stop all others.
//! Not here: unpacked layers, whose sizes nobody knows before; blobs that together fill the disk.

use std::io;
use std::path::Path;

use crate::error::Error;

/// What stays free for everything else on the file system, at most. Bytes.
const RESERVE_BYTES: u64 = 1 << 30;
/// The reserve of a small file system, as a part of it.
const RESERVE_PART: u64 = 50;

/// Looks for room for `bytes` on the file system of `directory`. Blocking. Errors: [`Error::DiskFull`] if there is too
/// little.
pub(crate) fn look_for_room(directory: &Path, bytes: u64) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::io("look at", directory, errno.into());
    let found = rustix::fs::statvfs(directory).map_err(failed)?;
    let (free, whole) = (found.f_bavail, found.f_blocks);
    let free = free.saturating_mul(found.f_frsize);
    let reserve = (whole.saturating_mul(found.f_frsize) / RESERVE_PART).min(RESERVE_BYTES);
    // An empty blob takes no room, and neither does a file system that does not know its size.
    if bytes.saturating_add(reserve) <= free || bytes == 0 || whole == 0 {
        return Ok(());
    }
    let text = format!("{free} bytes are free, the blob takes {bytes}, and {reserve} stay free");
    Err(Error::DiskFull {
        operation: "store a blob in",
        path: directory.to_owned(),
        source: io::Error::new(io::ErrorKind::StorageFull, text),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_blob_needs_room_for_itself_and_what_others_have_promised_does_not_count() {
        let directory = std::env::temp_dir();
        let found = rustix::fs::statvfs(&directory).unwrap();
        let free = found.f_bavail * found.f_frsize;
        // The file system is in use meanwhile: all is by halves.
        let refused = look_for_room(&directory, free * 2).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exhausted);
        look_for_room(&directory, free / 2).unwrap();
        look_for_room(&directory, free / 2).unwrap();
        look_for_room(&directory, 0).unwrap();
    }
}
