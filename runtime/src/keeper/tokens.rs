//! The epoll tokens of the keeper's event loop.
//!
//! Used by the loop and by everything that registers descriptors with it. Invariant: no number has two meanings.
//! It must not know what an event leads to.

/// The listening control socket.
pub(super) const LISTENER: u64 = 1;
/// The daemon's connection.
pub(super) const CONNECTION: u64 = 2;
/// The lifeline, which ends with a daemon that has not recorded the pod.
pub(super) const LIFELINE: u64 = 3;
/// The first process of a shared pid namespace.
pub(super) const PAUSE: u64 = 4;
/// Ended children.
pub(super) const CHILDREN: u64 = 5;
/// Tokens of containers start here.
pub(super) const FIRST_WATCH: u64 = 16;
/// Tokens of execs start here.
pub(super) const FIRST_EXEC: u64 = 1 << 32;
