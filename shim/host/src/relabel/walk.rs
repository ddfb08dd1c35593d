//! Labels a file and, if it is a directory, everything below it.
//!
//! Called by: [`super::Relabels`], on a thread of its own; blocks on the volume.
//! Invariants: no link is followed and no mount entered, not even one of the same file system; a file is labelled by
//! its descriptor, so that a file that replaces it meanwhile is not; nothing is recursive, and the remembered names are
//! bounded. Source: openat2(2), path_resolution(7).
//! Must not know: which directories may be labelled.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::set;

/// Bytes of directory entries that are read at a time.
const BATCH: usize = 16 * 1024;
/// Most bytes of remembered names of directories.
const NAME_BYTES: usize = 8 << 20;
/// Overhead of a remembered name. Bytes.
const OVERHEAD: usize = 32;

/// A directory that the walk left for a subdirectory, to be continued later.
struct Level {
    device: u64,
    inode: u64,
    /// Its subdirectories that are still to be entered.
    left: Vec<CString>,
}

struct Walk<'a> {
    label: &'a str,
    is_stopped: &'a dyn Fn() -> bool,
    /// Bytes of names that may still be remembered.
    room: usize,
}

/// Labels `top`, opened with `O_PATH`, and everything below it until `is_stopped`. Depth first, one directory open at a
/// time; goes back up by `..`, which must lead to the directory that it came from.
///
/// Errors: the disk's; Interrupted when it was stopped.
pub(super) fn walk(top: &OwnedFd, label: &str, is_stopped: &dyn Fn() -> bool) -> io::Result<()> {
    let is_directory = FileType::from_raw_mode(fstat(top)?.st_mode) == FileType::Directory;
    if !set(top, label)? {
        tracing::debug!(
            "a volume keeps its SELinux labels: its file system has none or is read-only"
        );
        return Ok(());
    }
    if !is_directory {
        return Ok(());
    }
    let mut walk = Walk {
        label,
        is_stopped,
        room: NAME_BYTES,
    };
    let mut here = openat(top, c".", DIRECTORY, Mode::empty())?;
    let mut levels = vec![walk.level(&here)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            walk.room += cost(&name);
            // It is gone, or was replaced meanwhile.
            let Some(below) = inside(&here, &name, DIRECTORY)? else {
                continue;
            };
            levels.push(walk.level(&below)?);
            here = below;
            continue;
        }
        levels.pop();
        if let Some(level) = levels.last() {
            here = back(&here, level)?;
        }
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const ANY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk<'_> {
    /// Labels all entries of a directory; its subdirectories are entered later.
    fn level(&mut self, here: &OwnedFd) -> io::Result<Level> {
        let found = fstat(here)?;
        let mut left = Vec::new();
        let mut buffer = Vec::with_capacity(BATCH);
        let mut entries = RawDir::new(here.as_fd(), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") && self.entry(here, name)? {
                let room = self.room.checked_sub(cost(name));
                self.room = room.ok_or_else(|| io::Error::other(TOO_MANY))?;
                left.push(name.to_owned());
            }
        }
        Ok(Level {
            device: found.st_dev,
            inode: found.st_ino,
            left,
        })
    }

    /// Labels one entry; returns whether it is a directory.
    fn entry(&self, here: &OwnedFd, name: &CStr) -> io::Result<bool> {
        if (self.is_stopped)() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was stopped"));
        }
        let Some(file) = inside(here, name, ANY)? else {
            return Ok(false);
        };
        set(&file, self.label)?;
        Ok(FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Directory)
    }
}

const TOO_MANY: &str = "it has too many directories beside each other to be labelled";

fn cost(name: &CStr) -> usize {
    name.count_bytes() + OVERHEAD
}

/// Opens an entry of a directory; `None` if it is gone, of another kind than `flags` require, or a mount.
fn inside(here: &OwnedFd, name: &CStr, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    match openat2(here, name, flags, Mode::empty(), within) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The directory above `here`. Errors: it is not the one that the walk left.
fn back(here: &OwnedFd, left: &Level) -> io::Result<OwnedFd> {
    let parent = openat(here, c"..", DIRECTORY, Mode::empty())?;
    let found = fstat(&parent)?;
    if (found.st_dev, found.st_ino) == (left.device, left.inode) {
        return Ok(parent);
    }
    let text = "a directory in it was moved while it was labelled";
    Err(io::Error::other(text))
}
