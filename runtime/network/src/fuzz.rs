//! Fuzz targets of this crate: each reads one hostile input and panics where an invariant is broken.
//!
//! Called by: the `fuzz` binary of the shim, and the tests, which replay the corpora of `runtime/fuzz`. Built only for
//! those two; no release has it. docs/security/fuzzing.md lists the invariants of each target.
//! The targets live beside the code that they test. Invariant: a target touches nothing outside this process.

use crate::cni;

/// A target: its name, and what reads one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[
    ("cni-result", cni::fuzz::result),
    ("cni-list", cni::fuzz::list),
];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#[path = "../../fuzz/replay.rs"]
mod replay;
