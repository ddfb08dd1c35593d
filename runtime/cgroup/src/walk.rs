//! Visits and removes a cgroup with those below it, however deep and wide a workload has nested them.
//!
//! Called by [`super::files`], `kill` and `v1`. Invariants: nothing here recurses; every step is by descriptor, so that no
//! path is too long for the kernel; at most two directories are open; the way back up is `..`, because a cgroup never
//! gets another parent. What is created during a walk may be missed: callers that must find all repeat it.
//! Not here: what is done in a cgroup.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::error::Error;

/// One open cgroup directory.
pub(super) struct Open<'a>(BorrowedFd<'a>);

impl Open<'_> {
    /// The text of its file `name`.
    pub(super) fn read(&self, name: &str) -> Result<String, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut file = File::from(openat(self.0, name, flags, Mode::empty())?);
        let mut text = String::new();
        let read = file.read_to_string(&mut text);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(text)
    }

    /// Writes `value` to its file `name`.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(openat(self.0, name, flags, Mode::empty())?);
        let written = file.write_all(value.as_bytes());
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Calls `visit` for the cgroup `top`, then for those below it, each before its own children; for none if `top` is gone.
/// Those that end meanwhile are left out. Errors: the first one, also of `visit`.
pub(super) fn each(
    top: &Path,
    mut visit: impl FnMut(Open<'_>) -> Result<(), Errno>,
) -> Result<(), Error> {
    let failed = |errno: Errno| failed(top, errno);
    if let Some(here) = present(open(CWD, top)).map_err(failed)? {
        visit(Open(here.as_fd())).map_err(failed)?;
    }
    below(top, visit)
}

/// As [`each`], without `top`.
pub(super) fn below(
    top: &Path,
    visit: impl FnMut(Open<'_>) -> Result<(), Errno>,
) -> Result<(), Error> {
    around(top, visit, |_| Ok(()))
}

/// Calls `before` for each cgroup below `top`, then both for those below it, then `after` for it.
pub(super) fn around(
    top: &Path,
    mut before: impl FnMut(Open<'_>) -> Result<(), Errno>,
    mut after: impl FnMut(Open<'_>) -> Result<(), Errno>,
) -> Result<(), Error> {
    let failed = |errno: Errno| failed(top, errno);
    let Some(mut here) = present(open(CWD, top)).map_err(failed)? else {
        return Ok(());
    };
    let mut pending = vec![children(here.as_fd(), usize::MAX).map_err(failed)?];
    while let Some(names) = pending.last_mut() {
        if let Some(name) = names.pop() {
            if let Some(child) = present(open(here.as_fd(), name.as_c_str())).map_err(failed)? {
                before(Open(child.as_fd())).map_err(failed)?;
                pending.push(children(child.as_fd(), usize::MAX).map_err(failed)?);
                here = child;
            }
            continue;
        }
        pending.pop();
        if !pending.is_empty() {
            after(Open(here.as_fd())).map_err(failed)?;
            here = open(here.as_fd(), c"..").map_err(failed)?;
        }
    }
    Ok(())
}

fn failed(top: &Path, errno: Errno) -> Error {
    Error::io("look into the cgroups of", top, errno.into())
}

/// Removes the cgroups below `top` that have no processes, deepest first. After `deadline` it only goes back up and removes
/// what is empty by then, but never before it has removed one of those that it has listed, however deep they are nested.
/// After it one name of each directory is listed, so that a late call costs the same however many there are.
/// What resists is left. True if any was removed. Errors: `top` cannot be looked into.
pub(super) fn empty(top: &Path, deadline: Instant) -> Result<bool, Error> {
    let failed = |errno: Errno| Error::io("remove the cgroups below", top, errno.into());
    let mut any = false;
    let Some(mut here) = present(open(CWD, top)).map_err(failed)? else {
        return Ok(any);
    };
    let listed = |dir: BorrowedFd<'_>| match Instant::now() >= deadline {
        true => children(dir, 1),
        false => children(dir, usize::MAX),
    };
    // A cgroup that is being emptied, and those in it that are still to be removed.
    let mut frames = vec![(CString::default(), listed(here.as_fd()).map_err(failed)?)];
    while let Some((own, names)) = frames.last_mut() {
        if any && Instant::now() >= deadline {
            names.clear();
        }
        if let Some(name) = names.pop() {
            match unlinkat(&here, name.as_c_str(), AtFlags::REMOVEDIR) {
                Ok(()) => any = true,
                Err(_) => {
                    if let Some(child) =
                        present(open(here.as_fd(), name.as_c_str())).map_err(failed)?
                    {
                        frames.push((name, listed(child.as_fd()).map_err(failed)?));
                        here = child;
                    }
                }
            }
            continue;
        }
        let own = std::mem::take(own);
        frames.pop();
        if !frames.is_empty() {
            here = open(here.as_fd(), c"..").map_err(failed)?;
            // EBUSY is a process that has not ended: the caller tries again.
            any |= unlinkat(&here, own.as_c_str(), AtFlags::REMOVEDIR).is_ok();
        }
    }
    Ok(any)
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// `None` for what is gone.
fn present(opened: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match opened {
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The names of the cgroups directly below `dir`, at most `most`; none if it is gone.
fn children(dir: BorrowedFd<'_>, most: usize) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = match entry {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(names),
            entry => entry?,
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
            if names.len() == most {
                break;
            }
        }
    }
    Ok(names)
}
