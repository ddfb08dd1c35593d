//! `[exec]`: limits for programs that are run in containers, as written and as checked.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: the budget is large enough for one stream
//! of full size of any call; by default for both. Must not know: how it is shared.

use serde::{Deserialize, Serialize};

use super::values::{Invalid, within};

const MIB: u64 = 1 << 20;

/// `[exec]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecFile {
    /// Memory for the output of all ExecSync calls at a time. Bytes.
    pub sync_output_bytes: u64,
}

impl Default for ExecFile {
    fn default() -> Self {
        Self {
            sync_output_bytes: 64 * MIB,
        }
    }
}

/// Limits for programs that are run in containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Memory for the output of all ExecSync calls at a time. Bytes, 48 MiB to 4 GiB.
    pub sync_output_bytes: usize,
}

/// Checks the table.
pub(super) fn check(file: &ExecFile) -> Result<Exec, Invalid> {
    let key = "exec.sync_output_bytes";
    let bytes = within(key, file.sync_output_bytes, 48 * MIB..=4096 * MIB)?;
    Ok(Exec {
        sync_output_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
    })
}
