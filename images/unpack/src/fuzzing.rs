//! What fuzz targets reach of this crate, without a process and a jail. No release has it.
//!
//! Called by the targets of `coracle-images`. Not here: the targets.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{XattrFlags, fsetxattr};

pub use crate::archive::{Listed, list};
use crate::{Job, OPAQUE, Verdict, layer};

/// Unpacks `blob` into `directory` in this process.
pub fn unpack_here(job: &Job, blob: OwnedFd, directory: OwnedFd) -> Verdict {
    let mark = |directory: BorrowedFd<'_>| fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty());
    layer::unpack(job, blob, directory, &mark)
}
