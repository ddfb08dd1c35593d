//! Opens files of the administrator's: credentials, mirrors, archives.
//!
//! Called by: whoever reads a file that a person has put there. Invariant: opening never waits, so that a FIFO by such a name
//! holds nothing up.
//! Not here: who may write the file, and how large it may be.

use std::fs::{File, Metadata};
use std::io;
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
