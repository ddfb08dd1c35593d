//! A mount namespace that holds an empty, read-only directory to mount on and nothing else, for processes that need no
//! files or mount their own.
//!
//! Created once by the daemon and once by the spawner. A process that holds a user namespace, or is the first of a
//! shared pid namespace, enters it before it creates that namespace, so that no file of the node can be reached
//! through the process. A container's own mount namespace begins as a copy of it.
//! Invariant: entering an existing one costs the same with any number of mounts on the node.
//! Not here: the processes in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat};
use rustix::process::fchdir;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::mounts::{self, Forbid};
use super::namespaces::unshare;

/// The directory to mount on.
pub const MOUNT_POINT: &str = "/mount-point";
/// Stack of the thread that creates one, bytes.
const STACK: usize = 128 * 1024;

/// Creates one, on a short-lived thread, so that the caller stays in its namespace.
///
/// Errors: no thread can be started, or the kernel refuses a mount.
pub fn namespace() -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new()
            .name("empty-root".to_owned())
            .stack_size(STACK);
        let maker = builder.spawn_scoped(scope, || {
            // Opened before the change of root: the new root has no /proc.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let own = open("/proc/thread-self/ns", flags, Mode::empty())?;
            enter_new()?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            Ok(openat(own, "mnt", flags, Mode::empty())?)
        })?;
        maker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread, which must be the only one of its process or one that ends soon, into `namespace`.
///
/// Errors: the kernel refuses: the caller is not host root.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace,
        Some(LinkNameSpaceType::Mount),
    )?)
}

/// Moves the calling thread into a new one. The cost grows with the number of mounts in its old namespace.
///
/// Errors: the kernel refuses a mount.
pub fn enter_new() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    replace_root()
}

/// Makes such a directory the root of the mount namespace the caller is in, which is its own already.
///
/// Errors: the kernel refuses a mount.
pub fn replace_root() -> io::Result<()> {
    let directory = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, "/proc", flags, Mode::empty())
    };
    mounts::make_all_private()?;
    let tree = mounts::tmpfs("4k")?;
    mounts::attach(tree.as_fd(), directory()?.as_fd())?;
    let root = directory()?;
    mkdirat(&root, &MOUNT_POINT[1..], Mode::RWXU)?;
    let forbid = Forbid::PRIVILEGE.and_writes(true);
    mounts::set_attributes(root.as_fd(), forbid, None, false)?;
    fchdir(&root)?;
    mounts::pivot_into_working_directory()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_in_it() {
        let made = namespace().unwrap();
        let found = std::thread::spawn(move || {
            unshare(UnshareFlags::FS).unwrap();
            enter(made.as_fd()).unwrap();
            let names = |path| std::fs::read_dir(path).unwrap().count();
            let is_read_only = std::fs::write("/new", "").is_err();
            (names("/"), names(MOUNT_POINT), is_read_only)
        });
        assert_eq!(found.join().unwrap(), (1, 0, true));
        assert!(std::path::Path::new("/proc/self").exists());
    }
}
