//! Fuzz targets of this crate: each parses one hostile input and panics if an invariant is broken.
//!
//! Called by the `fuzz` binary of the shim and by the test below, which replays the corpora of `runtime/fuzz` with
//! every `make test`. Built only for those two, never in a release. docs/security/fuzzing.md describes the targets.
//! Each target is a function of the module it tests. Invariant: a target touches nothing outside this process.

use crate::{exits, frame};

/// A target: its name, and what reads one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[
    ("control-frames", frame::fuzz::frames),
    ("control-messages", frame::fuzz::messages),
    ("exit-record", exits::fuzz),
];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#[path = "../../fuzz/replay.rs"]
mod replay;
