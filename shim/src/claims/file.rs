//! The file of a claim: the daemon that made it, as JSON, and a lock that lives as long as that daemon.
//!
//! Called by: [`super::Claims::take`]. Invariant: a crash leaves the old text or the new one, never nothing.
//! Must not know: which resource a file stands for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Error, failed};

/// The daemon that made a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claimer {
    /// The random id of its root.
    pub instance: String,
    /// Its root directory.
    pub root: PathBuf,
    /// The pid of the daemon that claimed last.
    pub pid: u32,
}

/// Locks the file; false when another daemon holds it for all of `timeout`. A killed daemon may hold it a moment
/// longer.
pub(super) fn lock(file: &File, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens the file; creates it when absent.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // O_NOFOLLOW: only root can write here, but a link would not be ours.
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
        .open(path)
        .map_err(|source| failed("open", path, source))
}

/// The daemon that wrote the file; `None` for a new or truncated file.
pub(super) fn read(file: &mut File, path: &Path) -> Result<Option<Claimer>, Error> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.map_err(|source| failed("read", path, source))?;
    Ok(serde_json::from_str(&text).ok())
}

/// Replaces the contents of the file.
pub(super) fn write(file: &mut File, path: &Path, claimer: &Claimer) -> Result<(), Error> {
    let written = serde_json::to_vec(claimer)
        .map_err(io::Error::other)
        .and_then(|text| {
            file.rewind()?;
            file.write_all(&text)?;
            // Truncate after writing, so that a crash leaves the old text or the new one with a tail, never nothing.
            file.set_len(text.len() as u64)
        });
    written.map_err(|source| failed("write", path, source))
}
