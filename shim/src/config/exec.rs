//! `[exec]`: what programs that are run in containers may cost the daemon, as it is written and as it was checked.
//!
//! Place in the flow: as [`super::file`] and [`super::check`], for this one table. Invariant: the budget is large enough
//! for one call of full size. Not here: how it is shared.

use serde::{Deserialize, Serialize};

use super::check::{Invalid, within};

const MIB: u64 = 1 << 20;

/// `[exec]` as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecFile {
    /// Memory for the output of all ExecSyncs at a time. Bytes.
    pub sync_output_bytes: u64,
}

impl Default for ExecFile {
    fn default() -> Self {
        Self {
            sync_output_bytes: 64 * MIB,
        }
    }
}

/// What programs that are run in containers may cost the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Memory for the output of all ExecSyncs at a time. Bytes, 48 MiB to 4 GiB.
    pub sync_output_bytes: usize,
}

/// Judges the table.
pub(super) fn check(file: &ExecFile) -> Result<Exec, Invalid> {
    let key = "exec.sync_output_bytes";
    let bytes = within(key, file.sync_output_bytes, 48 * MIB..=4096 * MIB)?;
    Ok(Exec {
        sync_output_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
    })
}
