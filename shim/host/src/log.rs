//! Opens a container's log file.
//!
//! Called by: StartContainer and ReopenContainerLog. The keeper gets the descriptor and never sees the path.
//!
//! An operator may have made links on the way to a kubelet's log directory (`/var/log` -> `/data/log`); a pod that has
//! `/var/log` mounted may plant others. So the links of the configured directory ([`LogRoot`]) are resolved once, when
//! the daemon starts; after that, and in any other directory that a kubelet names, no component may be a link.
//! Invariants: the opened file is a regular file with one name, found without following a link; nothing else is ever
//! opened for writing; a file system that does not answer holds up one thread of [`super::paths`] and one request,
//! nothing else.
//! Must not know: the format of a log.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use coracle_lifecycle::{Error, Kind};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open as open_at_path, openat2,
};
use rustix::io::Errno;

use super::io_error;
use super::paths::{Missing, Paths};

/// How often to look again for a file that comes and goes while it is opened.
const TRIES: usize = 8;
/// Mode of a log file that is created.
const MODE: Mode = Mode::from_raw_mode(0o640);

/// The kubelet's directory of pods' logs, as configured and with its links resolved.
#[derive(Clone, Debug)]
pub struct LogRoot {
    named: PathBuf,
    real: PathBuf,
}

impl LogRoot {
    /// Resolves the links of `directory`, as far as it exists.
    pub fn resolve(directory: &Path) -> Self {
        let found = directory.ancestors().find_map(|ancestor| {
            let real = ancestor.canonicalize().ok()?;
            Some(real.join(directory.strip_prefix(ancestor).ok()?))
        });
        Self {
            named: directory.to_owned(),
            real: found.unwrap_or_else(|| directory.to_owned()),
        }
    }

    /// `path` with the operator's links resolved.
    pub fn place(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.named) {
            Ok(below) => self.real.join(below),
            Err(_) => path.to_owned(),
        }
    }
}

/// Opens (or creates) `log`, which lies below `directory`, for appending. An empty path means no log.
///
/// Errors: Deadline when the file system does not answer; Invalid when a component is a link, or the file is not a
/// regular one or has a second name.
pub async fn open(
    paths: &Paths,
    root: &LogRoot,
    directory: &str,
    log: &str,
) -> Result<Option<OwnedFd>, Error> {
    if log.is_empty() {
        return Ok(None);
    }
    let (directory, log) = (PathBuf::from(directory), PathBuf::from(log));
    let text = log.display().to_string();
    let root = root.clone();
    let opened = paths.run(
        || format!("open log {text}"),
        move |lookup| {
            // Only enters the directory's file system; what is wrong with the path is found out below.
            match lookup.open(&root.place(&directory), Missing::Refuse) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Err(io_error(format!("open log {}", log.display()), error))
                }
                _ => open_below(&root, &directory, &log),
            }
        },
    );
    opened.await.map(Some)
}

fn open_below(root: &LogRoot, directory: &Path, log: &Path) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::EXDEV | libc::ENOTDIR) => Error::because(
            Kind::Invalid,
            format!(
                "log {} is not below its directory without links; links of the kubelet's log directory itself are \
                 followed if the configuration names it (sandbox.pod_logs_dir, now {})",
                log.display(),
                root.named.display()
            ),
            error,
        ),
        Some(libc::EINVAL) => Error::because(
            Kind::Invalid,
            format!("log {} is not a regular file", log.display()),
            error,
        ),
        Some(libc::EMLINK) => Error::new(
            Kind::Invalid,
            format!(
                "log {} is a file with another name elsewhere (a hard link), into which nothing is written",
                log.display()
            ),
        ),
        _ => io_error(format!("open log {}", log.display()), error),
    };
    let name = log.strip_prefix(directory).unwrap_or(log);
    let name = plain(name).ok_or_else(|| failed(Errno::XDEV.into()))?;
    let directory = make_directories(&root.place(directory)).map_err(failed)?;
    open_file(directory, &name).map_err(failed).map(Into::into)
}

/// The components of a path that only goes down; `None` for an absolute one, an empty one, or one with `..`.
fn plain(path: &Path) -> Option<Vec<&OsStr>> {
    let parts: Option<Vec<_>> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    parts.filter(|parts| !parts.is_empty())
}

/// Opens the absolute `path` without following a link; creates missing directories.
fn make_directories(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let whole = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    match whole {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    let mut at = open_at_path("/", flags, Mode::empty())?;
    let below = path.strip_prefix("/").unwrap_or(path);
    for name in plain(below).ok_or(Errno::XDEV)? {
        at = make_directory(at.as_fd(), name)?;
    }
    Ok(at)
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat2(parent, name, flags, Mode::empty(), BELOW)?)
}

/// Opens without following a link and without leaving the directory.
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

fn open_file(mut at: OwnedFd, name: &[&OsStr]) -> io::Result<File> {
    let Some((name, directories)) = name.split_last() else {
        return Err(Errno::INVAL.into());
    };
    for directory in directories {
        at = make_directory(at.as_fd(), directory)?;
    }
    for _ in 0..TRIES {
        match open_existing(at.as_fd(), name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat2(&at, *name, flags, MODE, BELOW) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Checks the file before it is opened: a device or FIFO must not notice.
fn open_existing(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat2(at, name, flags, Mode::empty(), BELOW)?;
    let found = fstat(&place)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile if found.st_nlink > 1 => return Err(Errno::MLINK.into()),
        FileType::RegularFile => {}
        FileType::Symlink => return Err(Errno::LOOP.into()),
        _ => return Err(Errno::INVAL.into()),
    }
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(open_at_path(same, flags, Mode::empty())?.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn root() -> LogRoot {
        LogRoot::resolve(Path::new("/var/log/pods"))
    }

    #[test]
    fn a_log_is_made_with_its_directories_and_appended_to() {
        use std::io::Write as _;
        let scratch = Scratch::new("log-make");
        let dir = scratch.0.canonicalize().unwrap();
        let log = dir.join("pod/web/0.log");
        for text in ["one\n", "two\n"] {
            File::from(open_below(&root(), &dir.join("pod"), &log).unwrap())
                .write_all(text.as_bytes())
                .unwrap();
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn planted_links_fifos_and_directories_are_refused() {
        let scratch = Scratch::new("log-planted");
        let dir = scratch.0.canonicalize().unwrap();
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
            let log = dir.join("logs").join(name);
            let error = open_below(&root(), &dir.join("logs"), &log).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{name}: {}", error.chain());
        }
        assert_eq!(std::fs::read_to_string(dir.join("canary")).unwrap(), "safe");
        assert!(!dir.join("new.log").exists());
    }

    #[test]
    fn no_component_of_the_directory_is_a_link_unless_the_operator_made_it_before() {
        let scratch = Scratch::new("log-above");
        let dir = scratch.0.canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("disk/pods/uid")).unwrap();
        std::os::unix::fs::symlink("disk", dir.join("log")).unwrap();
        let named = dir.join("log/pods");
        let log = named.join("uid/web/0.log");
        let open = |root: &LogRoot| open_below(root, &named.join("uid"), &log);
        let refused = open(&root()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{}", refused.chain());
        assert!(refused.chain().contains("pod_logs_dir"));
        let operator = LogRoot::resolve(&named);
        open(&operator).unwrap();
        assert!(dir.join("disk/pods/uid/web/0.log").is_file());
        // A link made while the daemon runs is not followed, whoever made it.
        std::fs::rename(dir.join("disk/pods"), dir.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", dir.join("disk/pods")).unwrap();
        assert_eq!(open(&operator).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_file_with_a_second_name_is_refused() {
        let scratch = Scratch::new("log-linked");
        let dir = scratch.0.canonicalize().unwrap();
        std::fs::write(dir.join("canary"), "safe").unwrap();
        std::fs::create_dir(dir.join("logs")).unwrap();
        std::fs::hard_link(dir.join("canary"), dir.join("logs/0.log")).unwrap();
        let log = dir.join("logs/0.log");
        let refused = open_below(&root(), &dir.join("logs"), &log).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{}", refused.chain());
        for bad in ["../canary", "a/../../canary", "."] {
            let log = dir.join("logs").join(bad);
            let refused = open_below(&root(), &dir.join("logs"), &log).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid, "{bad}: {}", refused.chain());
        }
        assert_eq!(std::fs::read_to_string(dir.join("canary")).unwrap(), "safe");
    }

    #[tokio::test]
    async fn no_path_is_no_log() {
        let (paths, root) = (Paths::default(), root());
        let none = open(&paths, &root, "/anywhere", "").await;
        assert!(none.unwrap().is_none());
    }
}
