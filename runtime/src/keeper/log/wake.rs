//! The events by which a keeper and a log thread wake each other.
//!
//! Called by: [`super::LogThread`] and its thread. Invariant: [`signal`] neither allocates nor locks. Not here: what the events
//! mean.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// A non-blocking event. Errors: no descriptors left.
pub(super) fn event() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes it readable. From any thread: a system call and nothing else.
pub(super) fn signal(fd: RawFd) {
    let one = 1_u64;
    // SAFETY: write(2) of 8 bytes from a live integer to an eventfd; it neither allocates nor locks.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}
