//! Exit records: how a container ended, on disk, outliving keeper and daemon.
//!
//! Written by the keeper before it tells anybody, read by the daemon at start and whenever a keeper is silent,
//! removed with the container. One file a container: a header line with version and checksum, then JSON.
//! Invariant: a record is complete or not there (written aside, then renamed to a name that does not exist yet).
//! Not here: what the daemon makes of an exit.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Context as _, Error, Kind, Result};
use crate::id::{ContainerId, hex};
use crate::spec::Exit;

const HEADER: &str = "coracle-exit 1 ";

/// Leaves the record of `container` in `dir`. Errors: the disk is full or broken.
pub fn write(dir: &Path, container: &ContainerId, exit: &Exit) -> Result<()> {
    let what = || format!("write exit record of container {container}");
    let body = serde_json::to_string(exit).map_err(|e| Error::with(Kind::Bug, what(), e))?;
    let temp = dir.join(format!("tmp-{container}"));
    let text = format!(
        "{HEADER}{}\n{body}\n",
        hex(&Sha256::digest(body.as_bytes()))
    );
    let mut file = fs::File::create(&temp).during(what)?;
    file.write_all(text.as_bytes()).during(what)?;
    fs::rename(&temp, dir.join(container.as_str())).during(what)
}

/// All whole records in `dir`; a torn one is skipped, as if its container had not been seen to end.
///
/// Errors: the directory cannot be listed; one that does not exist holds none.
pub fn read_all(dir: &Path) -> Result<Vec<(ContainerId, Exit)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(|| format!("list exit records in {}", dir.display()))?,
    };
    let named = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    Ok(named
        .filter_map(|id: ContainerId| Some((id.clone(), read(dir, &id)?)))
        .collect())
}

/// The record of `container`, if it is there and whole.
pub fn read(dir: &Path, container: &ContainerId) -> Option<Exit> {
    let text = fs::read_to_string(dir.join(container.as_str())).ok()?;
    let (header, body) = text.split_once('\n')?;
    let body = body.strip_suffix('\n')?;
    let sum = header.strip_prefix(HEADER)?;
    (sum == hex(&Sha256::digest(body.as_bytes()))).then(|| serde_json::from_str(body).ok())?
}

/// Removes the record of `container`; absent is fine.
pub fn remove(dir: &Path, container: &ContainerId) {
    let _ = fs::remove_file(dir.join(container.as_str()));
    let _ = fs::remove_file(dir.join(format!("tmp-{container}")));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::spec::Cause;

    #[test]
    fn a_torn_record_is_no_record() {
        let dir = std::env::temp_dir().join(format!("coracle-exits-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let id = ContainerId::random().unwrap();
        let exit = Exit {
            code: 3,
            signal: None,
            finished_at: 5,
            cause: Cause::Ended,
        };
        write(&dir, &id, &exit).unwrap();
        assert_eq!(read_all(&dir).unwrap(), [(id.clone(), exit)]);
        let path = dir.join(id.as_str());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 4]).unwrap();
        assert!(read_all(&dir).unwrap().is_empty());
        remove(&dir, &id);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
    }
}
