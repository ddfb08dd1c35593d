//! Where the binaries under test lie: beside the tests in cargo's target directory.
//!
//! Not here: building them; the Makefile does, and an error says which target.

use std::path::{Path, PathBuf};

use crate::Outcome;

/// The daemon built beside the tests: two levels above the test binary, unless `CORACLE_BIN` names another.
/// Errors: there is none.
pub fn binary() -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os("CORACLE_BIN") {
        return Ok(named.into());
    }
    existing(target_dir()?.join("release/coracle"), "make build")
}

/// The daemon built with failpoints. Errors: there is none.
pub fn failpoints_binary() -> Outcome<PathBuf> {
    existing(
        target_dir()?.join("failpoints-bin/coracle"),
        "make test-build",
    )
}

/// Cargo's target directory, from where this program lies in it (`release/deps/` or `release/`).
pub fn target_dir() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let release = own
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "release"));
    let target = release.and_then(Path::parent);
    let target =
        target.ok_or_else(|| format!("{} is not in a release directory", own.display()))?;
    Ok(target.to_owned())
}

fn existing(path: PathBuf, target: &str) -> Outcome<PathBuf> {
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not built; run {target}", path.display()).into())
    }
}
