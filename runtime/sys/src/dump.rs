//! Makes this process non-dumpable, which protects its memory, descriptors, root, working directory and namespaces.
//!
//! Called by every process of ours before it does anything else, and after each change of its ids.
//!
//! The kernel lets a process look into another one (`/proc/PID/root`, `fd`, `mem`, ...) if it has the same ids and at
//! least its capabilities, or all capabilities over the other's user namespace. Root in a container with the node's
//! pids has the latter over every user namespace that host root made. What stops it is that the other one is not
//! dumpable: then only CAP_SYS_PTRACE over the namespace in which its program was executed helps.
//!
//! fork(2) passes the setting on, execve(2) makes a process dumpable again, a change of effective or filesystem ids
//! sets it to `fs.suid_dumpable`.
//! Invariant: a process is not dumpable before it, or a child of it, enters or makes a namespace.
//! Not here: other protections.

use std::io;

use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};

/// The sysctl for the dumpable setting after a change of ids.
const AFTER_ID_CHANGE: &str = "/proc/sys/fs/suid_dumpable";

/// Makes this process not dumpable: no core dump, and no other process without CAP_SYS_PTRACE reaches into it.
///
/// Errors: the kernel's; the setting is read back, so success means that it holds.
pub fn forbid() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    match dumpable_behavior()? {
        DumpableBehavior::NotDumpable => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

/// Whether a change of ids makes a process dumpable on this node (`fs.suid_dumpable` is 1): then our processes would
/// be dumpable for a moment when they enter a user namespace.
///
/// Errors: `/proc` cannot be read.
pub fn id_change_reopens() -> io::Result<bool> {
    Ok(std::fs::read_to_string(AFTER_ID_CHANGE)?.trim() == "1")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::fork::{self, Forked};
    use std::os::fd::AsFd as _;

    #[test]
    fn a_child_inherits_it_through_a_change_of_ids() {
        fork::test_alone("dump::tests::a_forked_child_inherits_it");
    }

    #[test]
    #[ignore = "it forks; the test above runs it in a process of its own"]
    fn a_forked_child_inherits_it() {
        let Forked::Parent { pidfd } = fork::fork(0, None).unwrap() else {
            let kept = || {
                forbid()?;
                crate::ids::keep_capabilities_over_id_change()?;
                crate::ids::set_filesystem_ids(70_000, 70_000)?;
                let after_files = dumpable_behavior()?;
                crate::ids::become_user(70_000, 70_000, &[])?;
                io::Result::Ok((after_files, dumpable_behavior()?))
            };
            let closed = (DumpableBehavior::NotDumpable, DumpableBehavior::NotDumpable);
            fork::leave(i32::from(kept().ok() != Some(closed)));
        };
        let ended = rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        assert_eq!(ended.unwrap().unwrap().exit_status(), Some(0));
    }
}
