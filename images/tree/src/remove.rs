//! Removes one tree in constant memory.
//!
//! Called by [`crate::Trash`], and directly where a tree must be removed at once. It never descends further than two
//! levels below the root: a directory found below a directory is first renamed up to the root.
//! ```text
//! root/a/b/c   ->   root/a, root/.0 (was a/b, still holds c)   ->   root/.0, root/.1 (was b/c)   ->   gone
//! ```
//! Invariants: each directory is renamed at most once, so the cost is linear; at most three descriptors are open.
//! Each call ends after a number of entries: whoever holds a directory of the tree open, in another container for instance,
//! may fill it as fast as it is emptied, for as long as he lives. Not here: when to remove.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags,
};
use rustix::io::Errno;

/// Entries after which [`remove`] gives up.
const MOST_ENTRIES: u64 = 4 << 20;

/// Removes the file or tree at `path`. An absent one is fine; a symlink is removed, not followed.
///
/// Errors: EXDEV when something is mounted in it; ENOTEMPTY when it has millions of entries or somebody fills it meanwhile;
/// the file system's. What was removed until then stays removed.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_within(path, MOST_ENTRIES)
}

fn remove_within(path: &Path, limit: u64) -> io::Result<()> {
    if remove_some(path, limit)? {
        return Ok(());
    }
    let text =
        format!("not empty after {limit} entries were removed; something may still write to it");
    Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, text))
}

/// Removes up to `limit` entries of the tree at `path`. True when nothing is left of it.
pub(crate) fn remove_some(path: &Path, limit: u64) -> io::Result<bool> {
    remove_for(path, limit, Duration::MAX)
}

/// The same, for about `time` at most.
pub(crate) fn remove_for(path: &Path, limit: u64, time: Duration) -> io::Result<bool> {
    let stat = match fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        other => other?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        gone(fs::unlinkat(CWD, path, AtFlags::empty()))?;
        return Ok(true);
    }
    let root = fs::openat(CWD, path, directory_flags(), Mode::empty())?;
    let mut removal = Removal {
        root,
        left: limit,
        end: Instant::now().checked_add(time),
        serial: 0,
    };
    loop {
        if !removal.empty_root()? {
            return Ok(false);
        }
        match fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            // A process that is being killed, or one that holds it open, has created another file.
            Err(Errno::NOTEMPTY | Errno::EXIST) if removal.take() => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            done => return gone(done).map(|()| true),
        }
    }
}

struct Removal {
    root: OwnedFd,
    /// Entries that may still be removed. What somebody else has filled or taken meanwhile counts as one, too.
    left: u64,
    /// When none may be removed any more; never if it is `None`.
    end: Option<Instant>,
    /// Numbers the directories that were renamed up.
    serial: u64,
}

impl Removal {
    /// Removes everything below the root. False when the limit was reached before.
    fn empty_root(&mut self) -> io::Result<bool> {
        loop {
            let mut was_empty = true;
            let mut entries = Dir::read_from(&self.root)?;
            while let Some(entry) = next(&mut entries)? {
                was_empty = false;
                if !self.take() {
                    return Ok(false);
                }
                let root = self.root.as_fd();
                if !unlink(root, entry.file_name(), entry.file_type())?
                    && !self.remove_child(entry.file_name())?
                {
                    return Ok(false);
                }
            }
            if was_empty {
                return Ok(true);
            }
        }
    }

    /// Removes a directory of the root, after renaming the directories in it up. False when the limit was reached.
    fn remove_child(&mut self, name: &CStr) -> io::Result<bool> {
        let mut opened = None;
        loop {
            match fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(true),
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(Errno::PERM) => {
                    unlock(self.root.as_fd(), name);
                    gone(fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR))
                        .or_else(|error| ignore(error, &[Errno::NOTEMPTY, Errno::EXIST]))?;
                }
                Err(errno) => return Err(errno.into()),
            }
            let child = match opened.take() {
                // It was empty a moment ago.
                Some(_) if !self.take() => return Ok(false),
                Some(child) => child,
                None => match open_child(self.root.as_fd(), name) {
                    Err(Errno::NOENT) => return Ok(true),
                    other => other?,
                },
            };
            let mut entries = Dir::read_from(&child)?;
            while let Some(entry) = next(&mut entries)? {
                if !self.take() {
                    return Ok(false);
                }
                if !unlink(child.as_fd(), entry.file_name(), entry.file_type())?
                    && !self.rename_up(child.as_fd(), entry.file_name())?
                {
                    return Ok(false);
                }
            }
            opened = Some(child);
        }
    }

    /// Moves directory `name` of `from` into the root, under a name that is free there. False when the limit was reached.
    fn rename_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
        let mut unlocked = false;
        loop {
            let new = format!(".{:x}", self.serial);
            let flags = RenameFlags::NOREPLACE;
            match fs::renameat_with(from, name, &self.root, new.as_str(), flags) {
                Err(Errno::EXIST) if !self.take() => return Ok(false),
                Err(Errno::EXIST) => self.serial += 1,
                Err(Errno::PERM) if !unlocked => {
                    unlock(from, name);
                    unlocked = true;
                }
                other => return gone(other).map(|()| true),
            }
        }
    }

    fn take(&mut self) -> bool {
        let is_left = self.left > 0 && self.end.is_none_or(|end| Instant::now() < end);
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

/// The next entry but for the directory itself and its parent.
fn next(entries: &mut Dir) -> io::Result<Option<fs::DirEntry>> {
    while let Some(entry) = entries.read() {
        match entry {
            Ok(entry) if entry.file_name() == c"." || entry.file_name() == c".." => {}
            Ok(entry) => return Ok(Some(entry)),
            // Somebody else removed the directory.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// Removes what is no directory. False for a directory, which is left alone.
fn unlink(from: BorrowedFd<'_>, name: &CStr, kind: FileType) -> io::Result<bool> {
    if kind == FileType::Directory {
        return Ok(false);
    }
    match fs::unlinkat(from, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(Errno::PERM) => {
            unlock(from, name);
            gone(fs::unlinkat(from, name, AtFlags::empty())).map(|()| true)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Clears the immutable and append-only flags, which a privileged container may set, of a directory and an entry in
/// it. If this fails, the next attempt to remove the entry reports it.
fn unlock(directory: BorrowedFd<'_>, name: &CStr) {
    clear_marks(directory);
    let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
    // Opening a device or a FIFO would act on it; neither carries marks.
    if !matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
        return;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(file) = fs::openat2(directory, name, flags, Mode::empty(), within()) {
        clear_marks(file.as_fd());
    }
}

fn clear_marks(file: BorrowedFd<'_>) {
    let marks = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = fs::ioctl_getflags(file)
        && flags.intersects(marks)
    {
        let _ = fs::ioctl_setflags(file, flags - marks);
    }
}

fn gone(done: Result<(), Errno>) -> io::Result<()> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

fn ignore(error: io::Error, passed: &[Errno]) -> io::Result<()> {
    match Errno::from_io_error(&error) {
        Some(errno) if passed.contains(&errno) => Ok(()),
        _ => Err(error),
    }
}

fn open_child(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    fs::openat2(directory, name, directory_flags(), Mode::empty(), within())
}

/// Resolution without links and mounts.
fn within() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests;
