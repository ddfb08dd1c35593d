//! The scripts of `tests/tools`: each builds one foreign program unless it is there already, and prints its path.
//!
//! Not here: what the programs are for.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// Runs a script and gives the path that it prints; minutes the first time. Errors: it failed, in its own words.
pub fn build(name: &str, args: &[&str]) -> Outcome<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tools")
        .join(name);
    let run = Command::new(&script).args(args).output()?;
    if !run.status.success() {
        return Err(format!(
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&run.stderr)
        )
        .into());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&run.stdout).trim()))
}
