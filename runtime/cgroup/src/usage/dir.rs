//! One cgroup directory, opened once, and the values in its files.
//!
//! Used by [`super`], which knows what the values mean. Invariant: an absent file is `None`; every other failure is an
//! error that names the file.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::files;
use crate::stats::{HugepageStats, Pressure};
use crate::v1::V1;

/// v1 writes "no limit" as the largest multiple of the page size; no machine has that much.
pub(super) const NO_LIMIT: u64 = 1 << 62;

/// The number in the file `file` of the cgroup `path`, which every cgroup of `controller` has: what a directory opened for one
/// file would cost is saved. Errors: the cgroup is gone.
pub(super) fn lone_number(v1: &V1, controller: &str, path: &str, file: &str) -> Result<u64, Error> {
    let dir = v1.dir(controller, path);
    let at = dir.as_deref().unwrap_or(Path::new("")).join(file);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let text = dir
        .ok_or(Errno::NOENT)
        .and_then(|_| rustix::fs::open(&at, flags, Mode::empty()))
        .and_then(whole)
        .map_err(|errno| Error::io("read", &at, errno.into()))?;
    Ok(files::parse_number(&at, &text)?.unwrap_or(u64::MAX))
}

/// One open cgroup directory, or one that does not exist.
pub(super) struct StatDir {
    dir: PathBuf,
    opened: Option<std::os::fd::OwnedFd>,
}

impl StatDir {
    pub(super) fn open(dir: PathBuf) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&dir, flags, Mode::empty()) {
            Ok(opened) => Some(opened),
            Err(Errno::NOENT | Errno::NODEV) => None,
            Err(errno) => return Err(Error::io("open", &dir, errno.into())),
        };
        Ok(Self { dir, opened })
    }

    pub(super) fn exists(&self) -> bool {
        self.opened.is_some()
    }

    /// The directory of a v1 controller that need not be mounted.
    pub(super) fn of(v1: &V1, controller: &str, path: &str) -> Result<Self, Error> {
        match v1.dir(controller, path) {
            Some(dir) => Self::open(dir),
            None => Ok(Self {
                dir: PathBuf::new(),
                opened: None,
            }),
        }
    }

    pub(super) fn text(&self, file: &str) -> Result<Option<String>, Error> {
        let Some(dir) = &self.opened else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let read = rustix::fs::openat(dir, file, flags, Mode::empty()).and_then(whole);
        match read {
            Ok(text) => Ok(Some(text)),
            // Absent, gone while we read, or switched off (`cgroup.pressure`).
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(Error::io("read", &self.dir.join(file), errno.into())),
        }
    }

    /// The number in `file`; `None` if there is no such file, or it contains `max`.
    pub(super) fn number(&self, file: &str) -> Result<Option<u64>, Error> {
        match self.text(file)? {
            Some(text) => files::parse_number(&self.dir.join(file), &text),
            None => Ok(None),
        }
    }

    /// Like [`StatDir::text`] of a file that every cgroup of the controller has.
    pub(super) fn required_text(&self, file: &str) -> Result<String, Error> {
        let absent = || Error::io("read", &self.dir.join(file), Errno::NOENT.into());
        self.text(file)?.ok_or_else(absent)
    }

    pub(super) fn required_number(&self, file: &str) -> Result<u64, Error> {
        let number = files::parse_number(&self.dir.join(file), &self.required_text(file)?)?;
        Ok(number.unwrap_or(u64::MAX))
    }

    pub(super) fn limit(&self, file: &str) -> Result<Option<u64>, Error> {
        Ok(self.number(file)?.filter(|limit| *limit < NO_LIMIT))
    }

    pub(super) fn pressure(&self, file: &str) -> Result<Option<Pressure>, Error> {
        Ok(self.text(file)?.as_deref().and_then(Pressure::parse))
    }

    pub(super) fn hugepages(
        &self,
        sizes: &[String],
        suffix: &str,
    ) -> Result<Vec<HugepageStats>, Error> {
        let mut all = Vec::new();
        for size in sizes {
            let usage = self.number(&format!("hugetlb.{size}.{suffix}"))?;
            all.extend(usage.map(|usage_bytes| HugepageStats {
                page_size: size.clone(),
                usage_bytes,
            }));
        }
        Ok(all)
    }
}

fn whole(file: std::os::fd::OwnedFd) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut part) {
            // The kernel renders each of these files whole, so that a part that is not full is the last.
            Ok(count) => {
                text.extend_from_slice(&part[..count]);
                if count < part.len() {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}
