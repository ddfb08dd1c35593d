//! Pid namespaces of a pod's Linux containers, seen from the keeper: whose processes a new guest will see.
//!
//! A process cannot change its own pid namespace, only that of its next children. A Linux guest is forked beside the
//! keeper, builds what it can, leaves the node's mounts and forks itself into a namespace that others share: they never
//! see a process that sees the node. A namespace that containers share has a first process of our own: it reaps, and
//! does nothing else.
//! Invariant: no container ever lives in the keeper's own pid namespace, except in pods that were given the node's.
//! Not here: what a guest does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::control;
use coracle_sys as sys;
use coracle_sys::fork::Forked;

/// Where a guest's process ids come from.
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
    /// The process whose pid namespace a Linux guest joins by itself, once it has left the node.
    pub(super) fn process(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Join(process) => Some(process),
            _ => None,
        }
    }

    /// Namespaces that the fork itself makes; `later` leaves the pid namespace to a second fork.
    pub(super) fn flags(self, later: bool) -> u64 {
        let pid = match self {
            Self::New if !later => libc::CLONE_NEWPID,
            _ => 0,
        };
        (libc::CLONE_NEWNS | pid) as u64
    }
}

/// Forks the first process of a pid namespace that a pod's containers share, inside `user` if that is given.
///
/// It never sees the node: a helper enters the `empty` mount namespace and the user namespace, and forks it there.
/// Returns its pidfd once it has given up all privileges. Errors: the node is exhausted.
pub(super) fn share(
    pod: &str,
    user: Option<&OwnedFd>,
    empty: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    match sys::fork::fork(0, None)? {
        Forked::Child => {
            sys::fork::set_title("coracle helper");
            let user = user.map_or(0, AsRawFd::as_raw_fd);
            let table = [0, theirs.as_raw_fd(), empty.as_raw_fd(), user];
            let done = sys::fork::keep_only(&table).and_then(|()| run_helper(pod, user != 0));
            sys::fork::leave(i32::from(done.is_err()))
        }
        Forked::Parent { pidfd } => {
            drop(theirs);
            let received = control::receive_one(ours.as_fd());
            // The end of the stream: the first process holds its end until it is jailed.
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

/// The helper: descriptors are 0 the null device, 1 the keeper's socket, 2 an empty mount namespace, 3 the pod's user
/// namespace if it has one.
fn run_helper(pod: &str, has_user: bool) -> io::Result<()> {
    let [socket, empty, user] = [1, 2, 3].map(sys::fork::adopt);
    sys::empty::enter(empty.as_fd())?;
    if has_user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    drop((empty, user));
    match sys::fork::fork_sibling(libc::CLONE_NEWPID as u64)? {
        Forked::Child => {
            std::mem::forget(socket);
            run_pause(pod)
        }
        Forked::Parent { pidfd } => {
            let sent = control::send_one(socket.as_fd(), b"\n", pidfd.as_fd());
            sent.map(drop)
        }
    }
}

/// The life of that process: no privilege, no descriptor but the null device; reaps whatever is left to it.
fn run_pause(pod: &str) -> ! {
    sys::fork::set_title(&format!("coracle pause {pod}"));
    let jailed = sys::dump::forbid()
        .and_then(|()| sys::ids::drop_capabilities())
        .and_then(|()| Ok(rustix::thread::set_no_new_privs(true)?))
        // Closes the socket, which lets the keeper go on.
        .and_then(|()| sys::fork::keep_only(&[0, 0, 0]));
    if jailed.is_err() {
        sys::fork::leave(1);
    }
    sys::signals::reset();
    sys::signals::ignore_children();
    loop {
        // Nothing can be sent to it but SIGKILL from outside: it has no handlers and is first of its namespace.
        sys::signals::sleep();
    }
}
