//! Pid namespaces of a pod's Linux containers, seen from the keeper: whose processes a new guest will see.
//!
//! A process cannot change its own pid namespace, only that of its next children; so the keeper points itself at the
//! right one, forks, and points back. A namespace that containers share has a first process of our own: it reaps, and
//! does nothing else.
//! Invariant: no container ever lives in the keeper's own pid namespace, except in pods that were given the node's.
//! Not here: what a guest does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::control;
use crate::sandbox::root;
use crate::sys;
use crate::sys::fork::Forked;

/// Where a guest's process ids come from.
#[derive(Clone, Copy)]
pub(super) enum PidPlace<'a> {
    /// A new namespace of its own.
    New,
    /// The namespace of the process behind this pidfd.
    Of(BorrowedFd<'a>),
    /// The keeper's, which is the node's.
    Keepers,
}

/// While this lives, children are born into another pid namespace.
pub(super) struct Entered(Option<OwnedFd>);

impl PidPlace<'_> {
    /// Points the keeper's next children at the place. Errors: the process behind it has ended.
    pub(super) fn enter(self) -> io::Result<Entered> {
        let Self::Of(process) = self else {
            return Ok(Entered(None));
        };
        let own = std::fs::File::open("/proc/self/ns/pid")?.into();
        move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)?;
        Ok(Entered(Some(own)))
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

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            // Cannot fail for a namespace that this process is in.
            let _ = move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID));
        }
    }
}

/// Forks the first process of a pid namespace that a pod's containers share, inside `user` if that is given.
///
/// Returns its pidfd. Errors: the node is exhausted.
pub(super) fn share(pod: &str, user: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    let Some(user) = user else {
        return match sys::fork::fork(flags, None)? {
            Forked::Child => reap(pod),
            Forked::Parent { pidfd } => Ok(pidfd),
        };
    };
    // A pid namespace belongs to the user namespace in which it was made, so a helper goes there first.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    match sys::fork::fork(0, None)? {
        Forked::Child => {
            sys::fork::set_title("coracle helper");
            if move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).is_err() {
                sys::fork::leave(1);
            }
            match sys::fork::fork_sibling(flags) {
                Ok(Forked::Child) => reap(pod),
                Ok(Forked::Parent { pidfd }) => {
                    let sent = control::send_one(theirs.as_fd(), b"\n", pidfd.as_fd());
                    sys::fork::leave(i32::from(sent.is_err()))
                }
                Err(_) => sys::fork::leave(1),
            }
        }
        Forked::Parent { pidfd } => {
            drop(theirs);
            let received = control::receive_one(ours.as_fd());
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            received
        }
    }
}

/// The life of that process: nothing of the node, no privilege, reaps whatever is left to it.
fn reap(pod: &str) -> ! {
    sys::fork::set_title(&format!("coracle pause {pod}"));
    let jailed = sys::fork::keep_only(&[0, 0, 0])
        .and_then(|()| root::empty().map_err(io::Error::other))
        .and_then(|()| sys::ids::drop_capabilities())
        .and_then(|()| Ok(rustix::thread::set_no_new_privs(true)?))
        .and_then(|()| {
            use rustix::process::DumpableBehavior::NotDumpable;
            Ok(rustix::process::set_dumpable_behavior(NotDumpable)?)
        });
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
