//! Zombie children: a descriptor that signals their end, peeking and reaping.
//!
//! Called by the keeper: a process that is killed while it forks a sibling (see `fork::fork_sibling`) leaves a child
//! that its parent does not know.
//! Invariant: peeking does not reap a child.
//! Not here: whose child is whose.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child has ended. Children unblock it with
/// `signals::reset`.
pub fn sigchld_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; sigprocmask and signalfd read it during the call; the
    // new descriptor is nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        match libc::signalfd(-1, &raw const set, flags) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// The pid of some child that has ended and waits to be reaped; none if there is none.
pub fn peek() -> Option<i32> {
    ended(libc::P_ALL, 0, libc::WNOWAIT)
}

/// The pid of this very child, if it has ended and waits to be reaped.
pub fn peek_at(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let number = pidfd.as_raw_fd().unsigned_abs();
    ended(libc::P_PIDFD, number, libc::WNOWAIT)
}

/// Reaps an ended child.
pub fn reap(pid: i32) {
    let _ = ended(libc::P_PID, pid.unsigned_abs(), 0);
}

fn ended(kind: libc::idtype_t, id: libc::id_t, more: i32) -> Option<i32> {
    let options = libc::WEXITED | libc::WNOHANG | more;
    // SAFETY: waitid writes one siginfo, which lives until the call returns and is all zero when no child was found;
    // a child that was found makes it one of those whose pid may be read.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let result = libc::waitid(kind, id, &raw mut info, options);
        (result == 0 && info.si_pid() != 0).then(|| info.si_pid())
    }
}
