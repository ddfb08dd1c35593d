//! Fuzz targets of this crate: each reads one input as hostile bytes and panics where a promise is broken.
//!
//! Called by: the `fuzz` binary of the shim, and the tests, which replay the corpora of `runtime/fuzz`. Built only for
//! those two; no release has it. docs/security/fuzzing.md says what each target promises.
//! The targets stand beside what they read. Invariant: a target touches nothing outside this process.

use crate::profile;

/// A target: its name, and what reads one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[("seccomp-profile", profile::fuzz_document)];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#[path = "../../fuzz/replay.rs"]
mod replay;
