//! The names of a record's generations: `record.<generation>` in the object's directory.
//!
//! Called by: [`super::store`], which writes and reads them, and [`super::syncer`], which unlinks the older ones.
//! Must not know: what a record holds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "record.";

/// Unlinks the generations before `newest`, which is on the disk. Errors: the first one that cannot be removed.
pub(super) fn drop_older(directory: &Path, newest: u64) -> io::Result<()> {
    for (generation, path) in generations(directory)? {
        if generation < newest {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// The file of a generation.
pub(super) fn path_of(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{generation}"))
}

/// All generations in a directory, in no order; none when it is absent.
pub(super) fn generations(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|text| text.parse().ok());
        if let Some(generation) = number {
            found.push((generation, entry.path()));
        }
    }
    Ok(found)
}

/// Unlinks a file; an absent one is fine.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
