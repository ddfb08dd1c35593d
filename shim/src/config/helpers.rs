//! `[helpers]`: the jailed processes that unpack layers and compile modules, as it is written and as it was checked.
//!
//! Place in the flow: as [`super::file`] and [`super::check`], for this one table. Invariant: at least one helper can run.
//! Not here: what a helper is limited to by itself.

use serde::{Deserialize, Serialize};

use super::check::{Invalid, within};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `[helpers]` as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HelpersFile {
    /// How many there may be at a time.
    pub max_processes: u64,
    /// Address space of all of them together. Bytes.
    pub max_memory_bytes: u64,
}

impl Default for HelpersFile {
    fn default() -> Self {
        Self {
            max_processes: 4,
            max_memory_bytes: 4 * GIB,
        }
    }
}

/// The helpers of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helpers {
    /// How many there may be at a time; others wait.
    pub processes: usize,
    /// Address space of all of them together. Bytes. One that is allowed more runs alone.
    pub memory_bytes: u64,
}

/// Judges the table.
pub(super) fn check(file: &HelpersFile) -> Result<Helpers, Invalid> {
    let processes = within("helpers.max_processes", file.max_processes, 1..=1024)?;
    Ok(Helpers {
        processes: usize::try_from(processes).unwrap_or(1),
        memory_bytes: within(
            "helpers.max_memory_bytes",
            file.max_memory_bytes,
            512 * MIB..=1024 * GIB,
        )?,
    })
}
