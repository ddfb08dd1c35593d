//! Fuzz targets of this crate: each parses one hostile input and panics if an invariant is broken.
//!
//! Called by the `fuzz` binary of the shim and by the tests, which replay the corpora of `runtime/fuzz`. Built only for
//! those two, never in a release. docs/security/fuzzing.md describes the targets.
//! Each target is a function of the module it tests. Invariant: a target touches nothing outside this process.

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
