//! Files that a container process writes about its guests: core dumps of traps, profiles.
//!
//! Called by [`super::run`] and [`super::server`] in the jail, so that a file ends up only where the guest itself could
//! write one. Invariants: the directory is opened before guest code runs; a file that exists is never opened, so that no
//! link in a shared volume leads elsewhere; their number in a directory and their size are bounded.
//! Not here: what is in the files ([`core_dump`], [`profile`]).

pub(super) mod core_dump;
pub(super) mod profile;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};

use self::core_dump::CoreDumps;
use self::profile::Profile;
use super::streams::{Output, Sink};
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::{ContainerSpec, WasmSpec};

/// Most files of one kind in a directory; older ones are kept.
const MAX_FILES: usize = 8;

/// A directory of the container for files of one kind.
pub(super) struct Directory {
    fd: OwnedFd,
    path: String,
}

/// A file that was just made, and is removed again unless it is filled.
struct NewFile<'a> {
    directory: &'a Directory,
    file: File,
    name: String,
    is_whole: bool,
}

impl Directory {
    /// Opens `path`, which `annotation` names. Errors: it is no directory of the container.
    pub(super) fn open(path: &str, annotation: &str) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(|e| {
            let text = format!(
                "open {path} of the container, which the annotation {annotation} names: mount a volume there"
            );
            Error::with(Kind::StartFailed, text, e)
        })?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Makes a new file `NAME-N.SUFFIX`. Errors: the directory has as many already, or cannot be written.
    fn create(&self, (name, suffix): (&str, &str)) -> io::Result<NewFile<'_>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for number in 0..MAX_FILES {
            let name = format!("{name}-{number}.{suffix}");
            let made = openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP);
            match made {
                Ok(fd) => {
                    return Ok(NewFile {
                        directory: self,
                        file: File::from(fd),
                        name,
                        is_whole: false,
                    });
                }
                Err(rustix::io::Errno::EXIST) => continue,
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::other(format!(
            "it has {MAX_FILES} of them already: remove some"
        )))
    }
}

impl NewFile<'_> {
    /// Writes all of it and gives its path. Errors: it cannot be written.
    fn fill(mut self, bytes: &[u8]) -> io::Result<String> {
        self.file.write_all(bytes)?;
        self.is_whole = true;
        let directory = self.directory.path.trim_end_matches('/');
        Ok(format!("{directory}/{}", self.name))
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = unlinkat(&self.directory.fd, &self.name, AtFlags::empty());
        }
    }
}

/// What a container process writes about its guests.
#[derive(Default)]
pub(super) struct Diagnostics {
    /// Dumps of those that trap.
    pub(super) core_dumps: Option<Arc<CoreDumps>>,
    /// Where they spend their time.
    pub(super) profile: Option<Arc<Profile>>,
}

impl Diagnostics {
    /// As `wasm` in a container of `spec` says. Errors: a directory is none.
    pub(super) fn of(spec: &ContainerSpec, wasm: &WasmSpec) -> Result<Self> {
        Ok(Self {
            core_dumps: CoreDumps::of(spec, wasm)?.map(Arc::new),
            profile: Profile::of(wasm)?.map(Arc::new),
        })
    }

    /// Writes the profile, if there is to be one, and says so on standard error.
    pub(super) fn finish(&self) {
        if let Some(profile) = &self.profile {
            let line = format!("coracle: {}\n", profile.write());
            let _ = Sink::put(&Output::err(false), line.as_bytes());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn files_are_new_and_their_number_is_bounded() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().to_str().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), place.path().join("a-0.wasm")).unwrap();
        let directory = Directory::open(path, "x").unwrap();
        for number in 1..MAX_FILES {
            let made = directory.create(("a", "wasm")).unwrap();
            let made = made.fill(b"bytes").unwrap();
            assert_eq!(made, format!("{path}/a-{number}.wasm"));
            assert_eq!(std::fs::read(made).unwrap(), b"bytes");
        }
        let full = directory.create(("a", "wasm")).err().unwrap();
        assert!(full.to_string().contains("8 of them"), "{full}");
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
        assert!(directory.create(("b", "wasm")).is_ok());
        let file = outside.path().to_str().unwrap();
        let refused = Directory::open(file, "coracle.dev/x").err().unwrap();
        assert!(refused.to_string().contains("coracle.dev/x"), "{refused}");
    }
}
