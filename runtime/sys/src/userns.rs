//! User namespaces with id maps, each kept alive by a process that does nothing else (the holder).
//!
//! Called by `sandbox::identity` (a map for mounts) and by `network` (the namespaces of a pod with ids of its own). The
//! daemon may call it although it has threads: the child makes system calls only.
//! Invariants: the holder ends with its handle, also when the caller is killed; before the namespace exists it is not
//! dumpable, has an empty root and none of the caller's descriptors, so that nothing can be reached through it, not
//! even while it exits (an exiting process has no mm, and so no dumpable setting).
//! Not here: which ids.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::thread::UnshareFlags;

use super::fork::{self, Forked};
use super::{dump, empty, namespaces};

/// One block of ids: first inside, first outside, count.
pub type Extent = (u32, u32, u32);

/// A process in a new user namespace; dropping this ends it.
pub struct Held {
    release: Option<OwnedFd>,
    pidfd: OwnedFd,
    pid: i32,
}

/// Parameters of a holder.
#[derive(Clone, Copy, Default)]
pub struct Holder<'a> {
    /// Further namespaces (`CLONE_NEW*`) to create inside the user namespace.
    pub flags: libc::c_int,
    /// The holder's mount namespace, one of [`empty`]; without one it creates its own, which allocates: only callers
    /// with one thread may leave it out.
    pub root: Option<BorrowedFd<'a>>,
    /// The holder's title in `ps`.
    pub title: Option<&'a str>,
}

/// Makes a user namespace with these maps.
///
/// Errors: the kernel refuses user namespaces, or the maps.
pub fn hold(holder: Holder<'_>, users: &[Extent], groups: &[Extent]) -> io::Result<Held> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (wait, release) = pipe()?;
    let (answer, ready) = pipe()?;
    // The child has it from its first instruction on.
    dump::forbid()?;
    if holder.title.is_some() {
        fork::find_title();
    }
    match fork::fork(0, None)? {
        Forked::Child => {
            // No allocation in the child: another thread of the caller may have held the allocator's lock.
            if let Some(title) = holder.title {
                fork::set_title(title);
            }
            let root = holder.root.map(|root| root.as_raw_fd());
            live(holder.flags, root, wait.as_raw_fd(), ready.as_raw_fd())
        }
        Forked::Parent { pidfd } => {
            drop((wait, ready));
            let mut held = Held {
                release: Some(release),
                pid: 0,
                pidfd,
            };
            // Dropped on an error, which ends the child.
            made(&answer)?;
            held.pid = fork::pid_of(held.pidfd.as_fd())?;
            held.map("uid_map", users)?;
            held.map("gid_map", groups)?;
            Ok(held)
        }
    }
}

/// Waits for the child's error number, 0 when it has made its namespaces.
fn made(answer: &OwnedFd) -> io::Result<()> {
    let mut number = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(answer, &mut number))? {
        4 => match i32::from_ne_bytes(number) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        _ => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// The life of the holder.
fn live(flags: libc::c_int, root: Option<i32>, wait: i32, ready: i32) -> ! {
    let table = [wait, ready, root.unwrap_or(wait)];
    let entered = fork::keep_only(&table).and_then(|()| enter(flags, root.is_some()));
    let errno = entered.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let reported = rustix::io::write(super::standard(1), &errno.to_ne_bytes());
    if errno == 0 && reported.is_ok() {
        // Ends when the other side closes, however that happens.
        let _ = rustix::io::read(super::standard(0), &mut [0; 1]);
    }
    fork::leave(0)
}

fn enter(flags: libc::c_int, root_is_given: bool) -> io::Result<()> {
    // Adopts descriptor 2 and closes it below.
    let root = fork::adopt(2);
    match root_is_given {
        true => empty::enter(root.as_fd())?,
        false => empty::enter_new()?,
    }
    drop(root);
    namespaces::unshare_with_user(UnshareFlags::from_bits_retain(flags.cast_unsigned()))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn there_is_nothing_to_find_in_a_holder() {
        fork::test_alone("userns::tests::a_holder_has_nothing");
    }

    #[test]
    #[ignore = "it forks what may allocate; the test above runs it"]
    fn a_holder_has_nothing() {
        let map = [(0, 1_879_048_192, 10)];
        let empty = empty::namespace().unwrap();
        for root in [None, Some(empty.as_fd())] {
            let holder = Holder {
                flags: libc::CLONE_NEWIPC,
                root,
                title: None,
            };
            let held = hold(holder, &map, &map).unwrap();
            let list = |what: &str| {
                let found = std::fs::read_dir(format!("/proc/{}/{what}", held.pid)).unwrap();
                found
                    .map(|entry| entry.unwrap().file_name())
                    .collect::<Vec<_>>()
            };
            let nothing = [&empty::MOUNT_POINT[1..]];
            assert_eq!(list("root"), nothing);
            assert_eq!(list("cwd"), nothing);
            let inside = format!("root{}", empty::MOUNT_POINT);
            assert_eq!(list(&inside), Vec::<std::ffi::OsString>::new());
            assert!(list("fd").len() <= 2, "{:?}", list("fd"));
            let link = |pid: &str, kind: &str| {
                std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
            };
            for kind in ["user", "ipc", "mnt"] {
                assert_ne!(link(&held.pid.to_string(), kind), link("self", kind));
            }
            held.open("ipc").unwrap();
        }
        let refused = hold(Holder::default(), &[(0, 0, 0)], &map);
        assert!(refused.is_err());
    }

    #[test]
    fn threads_that_allocate_hold_up_no_holder() {
        fork::test_alone("userns::tests::a_holder_needs_no_allocator");
    }

    #[test]
    #[ignore = "it ends its process if a holder hangs; the test above runs it"]
    fn a_holder_needs_no_allocator() {
        // SAFETY: both take integers; from here on all threads share one allocator's lock, and this process and its
        // children are a group of their own.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::setpgid(0, 0);
        }
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(60));
            // SAFETY: takes integers. A holder that hangs has our output open and ends, too.
            unsafe { libc::kill(0, libc::SIGKILL) }
        });
        let empty = empty::namespace().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        // SAFETY: takes an integer. It has the lock for nearly all of its time.
                        unsafe { libc::malloc_trim(0) };
                    }
                });
            }
            for _ in 0..100 {
                let holder = Holder {
                    flags: 0,
                    root: Some(empty.as_fd()),
                    title: Some("coracle held"),
                };
                let map = [(0, 1_879_048_192, 10)];
                hold(holder, &map, &map).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
