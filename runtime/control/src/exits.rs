//! Exit records on disk: how a container ended. They outlive keeper and daemon.
//!
//! The keeper writes one before it sends the event; the daemon reads it at start and when a keeper does not answer; it
//! is removed with the container. One file per container: a header line with version and checksum, then JSON.
//! Invariant: a record is complete or absent: it is written to a temporary file, then renamed to a new name.
//! It must not know what the daemon does with an exit.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use coracle_spec::Exit;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::{ContainerId, hex};

const HEADER: &str = "coracle-exit ";
/// The format this build writes.
const VERSION: &str = "1";

/// Writes the record of `container` to `dir`. Errors: the disk is full or broken.
pub fn write(dir: &Path, container: &ContainerId, exit: &Exit) -> Result<()> {
    let what = || format!("write exit record of container {container}");
    let body = serde_json::to_string(exit).map_err(|e| Error::with(Kind::Bug, what(), e))?;
    let temp = dir.join(format!("tmp-{container}"));
    let text = format!(
        "{HEADER}{VERSION} {}\n{body}\n",
        hex(&Sha256::digest(body.as_bytes()))
    );
    let mut file = fs::File::create(&temp).during(what)?;
    file.write_all(text.as_bytes()).during(what)?;
    fs::rename(&temp, dir.join(container.as_str())).during(what)
}

/// The record of `container`. A torn one counts as absent.
///
/// Errors: it exists but cannot be read, or has a format that this build does not know.
pub fn read(dir: &Path, container: &ContainerId) -> Result<Option<Exit>> {
    let path = dir.join(container.as_str());
    let what = || format!("read exit record {}", path.display());
    match fs::read(&path) {
        Ok(bytes) => decode(&bytes)
            .map_err(|why| Error::new(Kind::Unsupported, format!("{}: {why}", what()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).during(what),
    }
}

/// The current time in nanoseconds since 1970 UTC, as in records.
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The exit in a record; `None` if it is torn. Errors: it is complete but of another format.
fn decode(bytes: &[u8]) -> std::result::Result<Option<Exit>, String> {
    let Some((header, body)) = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.split_once('\n'))
    else {
        return Ok(None);
    };
    let Some((version, sum)) = header
        .strip_prefix(HEADER)
        .and_then(|rest| rest.split_once(' '))
    else {
        return Ok(None);
    };
    if version != VERSION {
        return Err(format!(
            "its format is {version}, this build reads {VERSION}"
        ));
    }
    let Some(body) = body.strip_suffix('\n') else {
        return Ok(None);
    };
    if sum != hex(&Sha256::digest(body.as_bytes())) {
        return Ok(None);
    }
    serde_json::from_str(body)
        .map(Some)
        .map_err(|e| e.to_string())
}

/// Removes the record of `container`, if there is one.
pub fn remove(dir: &Path, container: &ContainerId) {
    let _ = fs::remove_file(dir.join(container.as_str()));
    let _ = fs::remove_file(dir.join(format!("tmp-{container}")));
}

/// Fuzz target: an exit record is read only if its checksum is right. For half of the inputs the target fixes the
/// checksum first.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let sum = |body: &str| hex(&Sha256::digest(body.as_bytes()));
    if let (Ok(Some(_)), Some((header, body))) = (decode(input), text.split_once('\n')) {
        let body = body.strip_suffix('\n').unwrap_or(body);
        assert!(header.ends_with(&sum(body)), "{header}");
    }
    let whole = format!("coracle-exit 1 {}\n{text}\n", sum(text));
    if let Ok(Some(exit)) = decode(whole.as_bytes()) {
        let written = serde_json::to_string(&exit).expect("an exit is JSON");
        assert_eq!(serde_json::from_str::<Exit>(&written).ok(), Some(exit));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_spec::Cause;

    #[test]
    fn a_torn_record_is_no_record() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let id = ContainerId::random().unwrap();
        let exit = Exit {
            code: 3,
            signal: None,
            finished_at: 5,
            cause: Cause::Ended,
            message: String::new(),
        };
        write(dir, &id, &exit).unwrap();
        assert_eq!(read(dir, &id).unwrap(), Some(exit));
        let path = dir.join(id.as_str());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 4]).unwrap();
        assert_eq!(read(dir, &id).unwrap(), None);
        remove(dir, &id);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }

    #[test]
    fn an_unreadable_record_is_an_error_not_absent() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("exits");
        let id = ContainerId::random().unwrap();
        let path = dir.join(id.as_str());
        fs::create_dir_all(&path).unwrap();
        assert!(read(&dir, &id).is_err(), "EISDIR");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "coracle-exit 2 ?\n?\n").unwrap();
        assert!(read(&dir, &id).is_err(), "a newer format");
        let whole = "{\"of\":\"tomorrow\"}";
        let sum = hex(&Sha256::digest(whole.as_bytes()));
        fs::write(&path, format!("coracle-exit 1 {sum}\n{whole}\n")).unwrap();
        assert!(read(&dir, &id).is_err(), "unknown content");
        fs::remove_file(&path).unwrap();
        fs::remove_dir(&dir).unwrap();
        assert_eq!(read(&dir, &id).unwrap(), None);
        fs::write(&dir, "").unwrap();
        assert!(read(&dir, &id).is_err(), "ENOTDIR");
    }
}
