//! Raw kernel calls that no safe library covers: fork without exec, signal dispositions, mount attributes.
//!
//! Called by spawner, keeper and sandbox. Wrappers always set close-on-exec and keep errno.
//! Invariant: all `unsafe` of process creation and mounting is here, each block with its argument.
//! Not here: pods, containers, policy.

#![allow(unsafe_code, reason = "raw kernel calls live here")]

pub mod bpf;
pub mod children;
pub mod command;
pub mod dump;
pub mod empty;
pub mod fork;
pub mod ids;
pub mod keyring;
pub mod landlock;
mod maker;
pub mod memfd;
pub mod memory;
pub mod mounts;
pub mod namespaces;
pub mod pages;
pub mod scheduling;
pub mod seccomp;
pub mod shared;
pub mod signals;
pub mod terminal;
pub mod userns;

/// Standard input, output or error (0, 1, 2), which stay open for the life of a process of ours.
pub fn standard(number: i32) -> std::os::fd::BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: every process of ours is started with these three open, and none closes them.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}

/// The user id of a unix socket's peer. A peer outside this pid namespace has pid 0, which safe wrappers refuse, so
/// only the uid is read.
pub fn peer_uid(socket: std::os::fd::BorrowedFd<'_>) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd as _;
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let to = (&raw mut peer).cast();
    // SAFETY: `peer` has the layout and `size` the length that SO_PEERCRED fills; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            to,
            &raw mut size,
        )
    };
    if result == 0 {
        Ok(peer.uid)
    } else {
        Err(std::io::Error::last_os_error())
    }
}
