//! Raw kernel calls that no safe library covers: fork without exec, signal dispositions, mount attributes.
//!
//! Called by spawner, keeper and sandbox. Wrappers always set close-on-exec and keep errno.
//! Invariant: the `unsafe` of process making and mounting lives here, each block argued.
//! Not here: pods, containers, policy.

pub mod fork;
pub mod ids;
pub mod mounts;
pub mod signals;

/// Standard input, output or error (0, 1, 2), which stay open for the life of a process of ours.
pub(crate) fn standard(number: i32) -> std::os::fd::BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: every process of ours is started with these three open, and none closes them.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}
