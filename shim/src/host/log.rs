//! Opens a container's log file.
//!
//! Called by: StartContainer and ReopenContainerLog. The keeper gets the descriptor and never sees the path.
//! Invariants: below the pod's log directory no symlink is followed and nothing but a regular file is taken; a file
//! system that does not answer holds up one blocking thread and one request, nothing else.
//! Not here: the format of a log.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::{blocking, io_error};
use crate::lifecycle::{Error, Kind};

/// How long a file system may take to open a log file.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens (and makes) `log`, which lies below `directory`, to append to. An empty path is no log.
/// Errors: Deadline when the file system does not answer; Invalid when the path is a symlink or no regular file.
pub async fn open(directory: &str, log: &str) -> Result<Option<OwnedFd>, Error> {
    if log.is_empty() {
        return Ok(None);
    }
    let (directory, log) = (PathBuf::from(directory), PathBuf::from(log));
    let text = log.display().to_string();
    let opened = blocking("opening a log file", move || open_below(&directory, &log));
    match tokio::time::timeout(PATIENCE, opened).await {
        Ok(result) => result.map(Some),
        Err(_) => Err(Error::new(
            Kind::Deadline,
            format!(
                "open log {text}: its file system did not answer within {} s",
                PATIENCE.as_secs()
            ),
        )),
    }
}

fn open_below(directory: &Path, log: &Path) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::EXDEV | libc::ENXIO | libc::EISDIR) => Error::because(
            Kind::Invalid,
            format!("log {} is no regular file of its directory", log.display()),
            error,
        ),
        _ => io_error(format!("open log {}", log.display()), error),
    };
    let name = log.strip_prefix(directory).unwrap_or(log);
    let file = match open_file(directory, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = log.parent().unwrap_or(directory);
            std::fs::create_dir_all(parent).map_err(failed)?;
            open_file(directory, name)
        }
        result => result,
    }
    .map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(Error::new(
            Kind::Invalid,
            format!("log {} is no regular file", log.display()),
        ));
    }
    Ok(file.into())
}

fn open_file(directory: &Path, name: &Path) -> io::Result<File> {
    let root = openat(
        CWD,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Without NONBLOCK a FIFO planted here would hold the open until somebody reads it.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(root, name, flags, Mode::from_raw_mode(0o640), resolve)?.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("coracle-log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_log_is_made_with_its_directories_and_appended_to() {
        use std::io::Write as _;
        let dir = scratch("make");
        let log = dir.join("pod/web/0.log");
        for text in ["one\n", "two\n"] {
            File::from(open_below(&dir.join("pod"), &log).unwrap())
                .write_all(text.as_bytes())
                .unwrap();
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn planted_links_fifos_and_directories_are_refused() {
        let dir = scratch("planted");
        std::fs::write(dir.join("canary"), "safe").unwrap();
        std::fs::create_dir(dir.join("logs")).unwrap();
        std::os::unix::fs::symlink(dir.join("canary"), dir.join("logs/link.log")).unwrap();
        std::os::unix::fs::symlink(&dir, dir.join("logs/up")).unwrap();
        std::fs::create_dir(dir.join("logs/dir.log")).unwrap();
        rustix::fs::mknodat(
            CWD,
            dir.join("logs/fifo.log"),
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        for name in ["link.log", "up/new.log", "dir.log", "fifo.log"] {
            let error = open_below(&dir.join("logs"), &dir.join("logs").join(name)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{name}: {}", error.chain());
        }
        assert_eq!(std::fs::read_to_string(dir.join("canary")).unwrap(), "safe");
        assert!(!dir.join("new.log").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn no_path_is_no_log() {
        assert!(open("/anywhere", "").await.unwrap().is_none());
    }
}
