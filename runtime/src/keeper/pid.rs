//! Pid namespaces of a pod's containers: the keeper chooses one for each process that it forks.
//!
//! A process cannot change its own pid namespace, only that of its next children. A Linux container's process that
//! joins a shared namespace prepares its root first, leaves the node's mounts, and then forks into that namespace, so
//! that the processes there never see one that sees the node. The first process of a shared namespace is ours: it only
//! reaps.
//! Invariants: no container lives in the keeper's own pid namespace, except in hostPID pods; what is visible in a pid
//! namespace of the pod is in the pod's other namespaces, too: the kernel shows a process's network (`/proc/PID/net`) to
//! everybody who sees the process.
//! It must not know what a container process does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use coracle_control::frame;
use coracle_sandbox::{self as sandbox, PodNamespaces};
use coracle_spec::error::{Context as _, Result};
use coracle_sys as sys;
use coracle_sys::fork::Forked;

/// The pid namespace of a new container process.
#[derive(Clone, Copy)]
pub(super) enum PidNamespace<'a> {
    /// A new namespace of its own.
    New,
    /// The namespace of the process behind this pidfd.
    Join(BorrowedFd<'a>),
    /// The keeper's, which is the node's.
    Node,
}

impl<'a> PidNamespace<'a> {
    /// The process whose pid namespace a Linux container's process joins itself, after it left the node's mounts.
    pub(super) fn process(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Join(process) => Some(process),
            _ => None,
        }
    }

    /// The clone(2) flags of the fork; with `later` a second fork makes the pid namespace.
    pub(super) fn flags(self, later: bool) -> u64 {
        let pid = match self {
            Self::New if !later => libc::CLONE_NEWPID,
            _ => 0,
        };
        pid as u64
    }
}

/// Forks the first process of a pid namespace that the containers of pod `id` share, inside all its namespaces.
///
/// It never sees the node, nor does anybody through it: a helper enters the namespaces, and forks it there. Returns its
/// pidfd after it dropped all privileges. Errors: the node is out of resources.
pub(super) fn share(id: &str, pod: &PodNamespaces) -> Result<OwnedFd> {
    let what = || "make the pod's shared pid namespace".to_owned();
    let empty = pod.empty()?;
    fork_helper(id, pod, empty).during(what)
}

fn fork_helper(id: &str, pod: &PodNamespaces, empty: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    match sys::fork::fork(0, None)? {
        Forked::Child => {
            sys::fork::set_title("coracle helper");
            let joined = sandbox::join(pod).map_err(io::Error::other);
            let user = pod.user.as_ref().map_or(0, AsRawFd::as_raw_fd);
            let table = [0, theirs.as_raw_fd(), empty.as_raw_fd(), user];
            let done = joined
                .and_then(|()| sys::fork::keep_only(&table))
                .and_then(|()| run_helper(id, user != 0));
            sys::fork::leave(i32::from(done.is_err()))
        }
        Forked::Parent { pidfd } => {
            drop(theirs);
            let received = frame::receive_one(ours.as_fd());
            // Read until the end: the first process closes its end when it is jailed.
            let jailed = rustix::io::retry_on_intr(|| rustix::io::read(&ours, &mut [0; 1]));
            rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            )?;
            match jailed? {
                0 => received,
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// The helper. Its descriptors: 0 the null device, 1 the keeper's socket, 2 an empty mount namespace, 3 the pod's user
/// namespace if it has one.
fn run_helper(id: &str, has_user: bool) -> io::Result<()> {
    let [socket, empty, user] = [1, 2, 3].map(sys::fork::adopt);
    sys::empty::enter(empty.as_fd())?;
    if has_user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    drop((empty, user));
    match sys::fork::fork_sibling(libc::CLONE_NEWPID as u64)? {
        Forked::Child => {
            std::mem::forget(socket);
            run_pause(id)
        }
        Forked::Parent { pidfd } => {
            let sent = frame::send_one(socket.as_fd(), b"\n", pidfd.as_fd());
            sent.map(drop)
        }
    }
}

/// The first process: drops all privileges and descriptors except the null device, then reaps orphans.
fn run_pause(id: &str) -> ! {
    sys::fork::set_title(&format!("coracle pause {id}"));
    let jailed = sys::dump::forbid()
        .and_then(|()| sys::ids::drop_capabilities())
        .and_then(|()| Ok(rustix::thread::set_no_new_privs(true)?))
        // Closes the socket, for which the keeper waits.
        .and_then(|()| sys::fork::keep_only(&[0, 0, 0]));
    if jailed.is_err() {
        sys::fork::leave(1);
    }
    sys::signals::reset();
    sys::signals::ignore_children();
    // A container that may trace it must not have system calls made here that its own filter forbids.
    if sys::seccomp::allow_only(sys::signals::SLEEP).is_err() {
        sys::fork::leave(1);
    }
    loop {
        // Only SIGKILL from outside reaches it: it has no handlers and is the first process of its namespace.
        sys::signals::sleep();
    }
}
