//! `[helpers]`: limits for the jailed processes that unpack layers and compile modules, as written and as checked.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: at least one helper can run.
//! Must not know: the limits of a single helper.

use serde::{Deserialize, Serialize};

use super::values::{Invalid, within};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `[helpers]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HelpersFile {
    /// Most helpers at a time.
    pub max_processes: u64,
    /// Address space of all of them together. Bytes.
    pub max_memory_bytes: u64,
}

impl Default for HelpersFile {
    fn default() -> Self {
        Self {
            max_processes: 4,
            max_memory_bytes: 4 * GIB + 512 * MIB,
        }
    }
}

/// Limits for the node's helpers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helpers {
    /// Most helpers at a time; others wait.
    pub processes: usize,
    /// Address space of all of them together. Bytes. A helper that may use more runs alone.
    pub memory_bytes: u64,
}

/// Checks the table.
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
