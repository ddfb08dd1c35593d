//! unshare(2): new namespaces for the calling thread.
//!
//! Called by `network` on threads of their own, and by `sandbox` in single-threaded processes.
//! Not here: which namespaces, what is done in them.

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Leaves the namespaces of `flags` for new ones. Errors: the kernel refuses; EINVAL if `flags` ask for a descriptor
/// table, which is no namespace.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: `unshare_unsafe` asks that other threads never see descriptors of an unshared table, which takes
    // CLONE_FILES: never among these flags.
    unsafe { unshare_unsafe(flags) }
}
