//! Opens files of the administrator's: credentials, mirrors, archives.
//!
//! Called by: whoever reads a file that a person has put there. Invariant: opening never waits, so that a FIFO by such a name
//! holds nothing up.
//! Not here: what is in a file.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// Opens the file at `path` for reading, and looks at the open file. Links are followed. Blocking.
///
/// Errors: the system's. A file that is not regular is opened; the caller must check `Metadata::is_file`, and read nothing of
/// another one.
pub(crate) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // Without waiting for the writer of a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let facts = file.metadata()?;
    Ok((file, facts))
}

/// The bytes of a file that decides what the node trusts: a regular file of at most `most` bytes that only root can write,
/// judged on the open file. `None` if it is not there. Blocking. Errors: what is wrong, as the rest of a sentence.
pub(crate) fn read_trusted(path: &Path, most: u64) -> Result<Option<Vec<u8>>, String> {
    read_guarded(path, most, 0o022, "write")
}

/// As [`read_trusted`], for what is also a secret: others than root cannot read it either.
pub(crate) fn read_secret(path: &Path, most: u64) -> Result<Option<Vec<u8>>, String> {
    read_guarded(path, most, 0o077, "read and write")
}

/// The bytes of a file of root's whose mode has nothing of `refused`, unless it is for the group of root.
fn read_guarded(
    path: &Path,
    most: u64,
    refused: u32,
    may: &str,
) -> Result<Option<Vec<u8>>, String> {
    let failed = |error: io::Error| format!("it cannot be read: {error}");
    let (file, facts) = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let refused = match facts.gid() {
        0 => refused & 0o007,
        _ => refused,
    };
    if !facts.is_file() || facts.uid() != 0 || facts.mode() & refused != 0 {
        return Err(format!(
            "it has mode {:04o} and owner {}:{}, must be a file that only root can {may}",
            facts.mode() & 0o7777,
            facts.uid(),
            facts.gid()
        ));
    }
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > most {
        return Err(format!("it holds more than {most} bytes"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use rustix::fs::{FileType, mknodat};

    use super::*;

    #[test]
    fn a_fifo_without_a_writer_is_opened_at_once_and_is_no_regular_file() {
        let path = std::env::temp_dir().join(format!("images-fifo-{}", std::process::id()));
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let opened = open(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(!opened.unwrap().1.is_file());
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
