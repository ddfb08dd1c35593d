//! New user namespaces with a map, held by a process that does nothing else.
//!
//! Called by `sandbox::identity` (a map for mounts) and by `network` (the namespaces of a pod with ids of its own). The
//! daemon may call it although it has threads: the child makes system calls only.
//! Invariant: the holder ends with its handle, whatever becomes of the caller.
//! Not here: which ids.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::fork::{self, Forked};

/// One block of ids: first inside, first outside, count.
pub type Extent = (u32, u32, u32);

/// A process in a new user namespace; dropping this ends it.
pub struct Held {
    release: Option<OwnedFd>,
    pidfd: OwnedFd,
    pid: i32,
}

/// Makes a user namespace with these maps, and beside it the namespaces that `flags` (`CLONE_NEW*`) name, inside it.
/// With a `title` the holder shows itself under that; only a process without other threads may give one.
///
/// Errors: the kernel refuses user namespaces, or the maps.
pub fn hold(
    flags: libc::c_int,
    users: &[Extent],
    groups: &[Extent],
    title: Option<&str>,
) -> io::Result<Held> {
    let (wait, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork::fork((libc::CLONE_NEWUSER | flags) as u64, None)? {
        Forked::Child => {
            drop(release);
            if let Some(title) = title {
                fork::set_title(title);
            }
            // Ends when the other side closes, however that happens.
            let _ = rustix::io::read(&wait, &mut [0; 1]);
            fork::leave(0)
        }
        Forked::Parent { pidfd } => {
            let held = Held {
                release: Some(release),
                pid: fork::pid_of(pidfd.as_fd())?,
                pidfd,
            };
            held.map("uid_map", users)?;
            held.map("gid_map", groups)?;
            Ok(held)
        }
    }
}

impl Held {
    fn map(&self, file: &str, extents: &[Extent]) -> io::Result<()> {
        let text: String = extents
            .iter()
            .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
            .collect();
        std::fs::write(format!("/proc/{}/{file}", self.pid), text)
    }

    /// Opens a namespace of the holder: `user`, `net`, `ipc`, `uts`.
    pub fn open(&self, kind: &str) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/{kind}", self.pid))?.into())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }
}
