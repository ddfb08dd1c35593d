//! How the daemon reaches its spawner and the keepers of its pods.
//!
//! The daemon holds a [`spawner::Spawner`] and, per pod, a [`keeper::Keeper`]. The processes themselves are in
//! coracle-runtime, which reads and writes the same messages.
//!
//! | module | is |
//! |---|---|
//! | [`frame`] | length-prefixed frames that may carry descriptors |
//! | [`messages`] | what the frames say |
//! | [`keeper`], [`spawner`] | the daemon's side of each |
//! | [`exits`] | the exit records, which a keeper writes and the daemon reads |
//! | [`log_counts`] | what keepers count of the logs that they write, for the daemon |
//! | [`process`] | a process identified by pidfd, pid and start time |
//!
//! Invariant: this crate does not link the WebAssembly engine, so that the daemon's crates compile without it.
//! It must not know about CRI, images or the daemon's records, nor what the processes at the other end do.

pub mod exits;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod keeper;
pub mod log_counts;
pub mod messages;
pub mod process;
pub mod spawner;
pub mod terminal {
    //! Terminals that the daemon makes and resizes.
    pub use coracle_sys::terminal::{pair, resize};
}
