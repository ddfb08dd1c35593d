//! What the keeper's event loop watches, by the number that epoll gives back.
//!
//! Used by the loop and by those who register descriptors with it. Invariant: no number means two things.
//! Not here: what follows from an event.

/// The socket at which the daemon connects.
pub(super) const LISTENER: u64 = 1;
/// The daemon's connection.
pub(super) const CONNECTION: u64 = 2;
/// What ends with a daemon that has not recorded the pod.
pub(super) const LIFELINE: u64 = 3;
/// The first process of a shared pid namespace.
pub(super) const PAUSE: u64 = 4;
/// Ended children.
pub(super) const CHILDREN: u64 = 5;
/// Watched things of containers count from here.
pub(super) const FIRST_WATCH: u64 = 16;
/// Watched things of execs count from here.
pub(super) const FIRST_EXEC: u64 = 1 << 32;
