//! The events by which a keeper and a log thread wake each other.
//!
//! Called by: [`super::LogThread`] and its thread. Invariant: [`signal`] neither allocates nor locks. Not here: what the events
//! mean.

use std::io;
use std::os::fd::OwnedFd;

/// A non-blocking event. Errors: no descriptors left.
pub(super) fn event() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes it readable. From any thread: a system call and nothing else.
pub(super) fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}
