//! Removes directory trees that strangers made: writable layers, image layers, half-made ones.
//!
//! Called by the image store and by the daemon's effects. Calls: the file system.
//! Invariants: nothing here recurses; stack, memory and descriptors are the same for a flat tree and for one a million
//! directories deep; no link is followed and no mount is entered.
//! Not here: which trees are to go.
#![forbid(unsafe_code)]

mod remove;
mod trash;

pub use remove::remove;
pub use trash::Trash;
