//! What a process that is exec'd begins with: descriptors beyond the standard ones, a root of its own.
//!
//! Called by `helper` and for hooks. Invariant: a child that is given descriptors has exactly these, from 3 on, besides 0 to 2.
//! Not here: which program is executed.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the directory `root` the root and the working directory of the child of `command`, whose path counts from there.
pub fn enter_root(command: &mut Command, root: OwnedFd) {
    let enter = move || {
        // SAFETY: both calls take an integer or a constant string and touch no memory of ours.
        let done =
            unsafe { libc::fchdir(root.as_raw_fd()) == 0 && libc::chroot(c".".as_ptr()) == 0 };
        match done {
            true => Ok(()),
            false => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes only async-signal-safe calls; `root` is open until `command` is
    // dropped.
    unsafe { command.pre_exec(enter) };
}

/// Passes `descriptors` to the child of `command` as 3, 4 and so on. They are closed with `command`.
pub fn give(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let mut lifted = vec![-1; descriptors.len()];
    let hand_over = move || {
        for (slot, descriptor) in lifted.iter_mut().zip(&descriptors) {
            // SAFETY: F_DUPFD_CLOEXEC takes integers and touches no memory.
            *slot = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 32) };
            if *slot < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (target, slot) in (3..).zip(&lifted) {
            // SAFETY: dup2 takes integers; whatever `target` named in the child is meant to be replaced.
            if unsafe { libc::dup2(*slot, target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only async-signal-safe calls on integers and on memory that was
    // allocated before. All sources are lifted above the targets first, so no dup2 overwrites another's source.
    unsafe { command.pre_exec(hand_over) };
}
