//! unshare(2): new namespaces for the calling thread.
//!
//! Called by `network` on threads of their own, and by `sandbox` in single-threaded processes.
//! Not here: which namespaces.

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Unshares the namespaces of `flags`. Errors: the kernel refuses; EINVAL if `flags` contain CLONE_FILES, which is
/// no namespace.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: `unshare_unsafe` requires that other threads never use descriptors of an unshared table, which needs
    // CLONE_FILES: never among these flags.
    unsafe { unshare_unsafe(flags) }
}
