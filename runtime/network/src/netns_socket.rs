//! Creates sockets in another network namespace.
//!
//! Called by: the daemon's port forwarding. Invariant: only a thread that ends right after changes its namespace.
//! Not here: connecting, reading, writing.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A non-blocking TCP socket of namespace `netns`, or of this thread's if there is none.
///
/// Errors: the kernel's; EAFNOSUPPORT where it has no IPv6.
pub fn tcp_socket(netns: Option<BorrowedFd<'_>>, v6: bool) -> io::Result<OwnedFd> {
    let family = match v6 {
        true => AddressFamily::INET6,
        false => AddressFamily::INET,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || Ok(socket_with(family, SocketType::STREAM, flags, None)?);
    let Some(netns) = netns else { return make() };
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned());
        let worker = worker.spawn_scoped(scope, || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            make()
        })?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
