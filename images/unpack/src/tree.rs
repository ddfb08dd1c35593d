//! Writes entries of one layer into one directory, and nowhere else.
//!
//! Called by `layer`; the only code that creates files from an image's names.
//! Invariants: every directory is reached by `openat2` from the layer's own root with `RESOLVE_IN_ROOT` and
//! without magic links; every last name is used with `*at` calls that do not follow links; so no name, link or
//! order of entries reaches a file outside. Attributes that control overlayfs never come from an archive: only
//! [`Mark`] makes a directory opaque. A directory keeps its time when something is written into it, so that it has that of
//! its own entry, wherever in the archive this is.
//! Not here: archives, compression, limits on amounts.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result as SysResult};

use crate::archive::Entry;

/// The overlayfs attribute of an opaque directory.
pub const OPAQUE: &str = "trusted.overlay.opaque";

/// Walks stay inside the root; symlinks count from it; `/proc`-style links are refused.
const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes a directory opaque.
pub(crate) type Mark<'a> = dyn Fn(BorrowedFd<'_>) -> Result<(), Errno> + 'a;

/// A layer that is being written.
pub(crate) struct Tree<'a> {
    root: OwnedFd,
    mark: &'a Mark<'a>,
    /// Directories that were made because an entry lies in them.
    made: Cell<u64>,
}

/// A name in a directory that has been reached safely.
pub(crate) struct PathAt<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    /// The times of the directory when it was reached.
    times: Timestamps,
}

impl<'t> Tree<'t> {
    /// A layer in the empty directory `root`, which no one else writes.
    pub(crate) fn new(root: OwnedFd, mark: &'t Mark<'t>) -> Self {
        Self {
            root,
            mark,
            made: Cell::new(0),
        }
    }

    /// How many directories were made since the last call that have no entry of their own, as yet.
    pub(crate) fn take_made(&self) -> u64 {
        self.made.take()
    }

    /// The directory above the last of `components`, made where missing. `components` is not empty.
    pub(crate) fn resolve<'a>(&self, components: &[&'a [u8]]) -> SysResult<PathAt<'a>> {
        let (name, parents) = components.split_last().ok_or(Errno::INVAL)?;
        let parent = match self.directory(parents) {
            Err(Errno::NOENT) => self.make_directories(parents)?,
            other => other?,
        };
        Ok(PathAt {
            times: times_of(&parent)?,
            parent,
            name: OsStr::from_bytes(name),
        })
    }

    /// A directory of this layer; links in its path are followed, inside the layer.
    fn directory(&self, components: &[&[u8]]) -> SysResult<OwnedFd> {
        let path = components.join(&b'/');
        let path = if path.is_empty() { b".".to_vec() } else { path };
        fs::openat2(
            &self.root,
            path.as_slice(),
            directory_flags() - OFlags::NOFOLLOW,
            Mode::empty(),
            CONFINED,
        )
    }

    fn make_directories(&self, components: &[&[u8]]) -> SysResult<OwnedFd> {
        let mut parent = self.directory(&[])?;
        for (index, name) in components.iter().enumerate() {
            parent = match self.directory(&components[..=index]) {
                Err(Errno::NOENT) => {
                    let times = times_of(&parent)?;
                    fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
                    self.made.set(self.made.get() + 1);
                    fs::futimens(&parent, &times)?;
                    self.directory(&components[..=index])?
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// Gives the root of the layer its owner and mode.
    pub(crate) fn apply_root_metadata(&self, entry: &Entry) -> SysResult<()> {
        apply_metadata(self.root.as_fd(), entry)
    }

    /// Creates a directory, or keeps one that is there; either way with the entry's owner and mode.
    pub(crate) fn make_directory(&self, path: &PathAt<'_>, entry: &Entry) -> SysResult<()> {
        let found = path.stat()?;
        if found != Found::Directory {
            path.remove(found)?;
            fs::mkdirat(&path.parent, path.name, Mode::from_raw_mode(0o700))?;
        }
        let directory = fs::openat(&path.parent, path.name, directory_flags(), Mode::empty())?;
        if found == Found::Whiteout {
            (self.mark)(directory.as_fd())?;
        }
        apply_metadata(directory.as_fd(), entry)
    }

    /// Creates an empty file to be written and then given its metadata.
    pub(crate) fn create_file(&self, path: &PathAt<'_>) -> SysResult<OwnedFd> {
        path.remove(path.stat()?)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&path.parent, path.name, flags, Mode::from_raw_mode(0o600))
    }

    /// Creates a symlink with whatever target the entry says: targets are confined when they are followed.
    pub(crate) fn make_symlink(&self, path: &PathAt<'_>, entry: &Entry) -> SysResult<()> {
        path.remove(path.stat()?)?;
        fs::symlinkat(entry.link.as_slice(), &path.parent, path.name)?;
        apply_owner_and_times(path, entry)
    }

    /// Links to another file of this layer. Errors: `NOENT` if it is not there, `PERM` if it is not a file.
    pub(crate) fn make_hardlink(&self, path: &PathAt<'_>, target: &[&[u8]]) -> SysResult<()> {
        let (name, parents) = target.split_last().ok_or(Errno::INVAL)?;
        let parent = self.directory(parents)?;
        let target = PathAt {
            times: times_of(&parent)?,
            parent,
            name: OsStr::from_bytes(name),
        };
        match target.stat()? {
            Found::File => {}
            Found::Nothing | Found::Whiteout => return Err(Errno::NOENT),
            Found::Directory => return Err(Errno::PERM),
        }
        if path.is_same(&target)? {
            return Ok(());
        }
        path.remove(path.stat()?)?;
        fs::linkat(
            &target.parent,
            target.name,
            &path.parent,
            path.name,
            AtFlags::empty(),
        )
    }

    /// Creates a FIFO.
    pub(crate) fn make_fifo(&self, path: &PathAt<'_>, entry: &Entry) -> SysResult<()> {
        path.remove(path.stat()?)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        fs::mknodat(&path.parent, path.name, FileType::Fifo, mode, 0)?;
        apply_owner_and_times(path, entry)
    }

    /// Hides `path` of the layers below. What this layer itself put there stays.
    pub(crate) fn white_out(&self, path: &PathAt<'_>) -> SysResult<()> {
        match path.stat()? {
            Found::Directory => (self.mark)(
                fs::openat(&path.parent, path.name, directory_flags(), Mode::empty())?.as_fd(),
            ),
            Found::File | Found::Whiteout => Ok(()),
            Found::Nothing => fs::mknodat(
                &path.parent,
                path.name,
                FileType::CharacterDevice,
                Mode::empty(),
                fs::makedev(0, 0),
            ),
        }
    }

    /// Hides everything that layers below have in the directory of `path`.
    pub(crate) fn make_opaque(&self, path: &PathAt<'_>) -> SysResult<()> {
        (self.mark)(path.parent.as_fd())
    }
}

/// What a name already is in this layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    Whiteout,
    File,
}

impl<'a> PathAt<'a> {
    /// Moves to another name in the same directory.
    pub(crate) fn go_to(&mut self, name: &'a [u8]) {
        self.name = OsStr::from_bytes(name);
    }

    /// Gives the directory the times that it had before something was written into it.
    pub(crate) fn restore_times(&self) -> SysResult<()> {
        fs::futimens(&self.parent, &self.times)
    }

    fn stat(&self) -> SysResult<Found> {
        match fs::statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(error) => Err(error),
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Found::Directory,
                FileType::CharacterDevice => Found::Whiteout,
                _ => Found::File,
            }),
        }
    }

    fn is_same(&self, other: &Self) -> SysResult<bool> {
        let (ours, theirs) = (fs::fstat(&self.parent)?, fs::fstat(&other.parent)?);
        Ok(self.name == other.name && ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev)
    }

    fn remove(&self, found: Found) -> SysResult<()> {
        match found {
            Found::Nothing => Ok(()),
            Found::Directory => remove_directory(self.parent.as_fd(), self.name),
            Found::Whiteout | Found::File => {
                fs::unlinkat(&self.parent, self.name, AtFlags::empty())
            }
        }
    }
}

/// Removes a directory and all below it, without following links and without recursion.
fn remove_directory(parent: BorrowedFd<'_>, name: &OsStr) -> SysResult<()> {
    let mut stack = vec![(
        parent.try_clone_to_owned().map_err(|_| Errno::MFILE)?,
        name.as_bytes().to_vec(),
    )];
    while let Some((above, name)) = stack.last() {
        let directory = fs::openat(above, name.as_slice(), directory_flags(), Mode::empty())?;
        let mut inner = None;
        for entry in fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let entry_name = entry.file_name().to_bytes();
            if matches!(entry_name, b"." | b"..") {
                continue;
            }
            match fs::unlinkat(&directory, entry_name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => {
                    inner = Some(entry_name.to_vec());
                    break;
                }
                other => other?,
            }
        }
        match inner {
            Some(inner) => stack.push((directory, inner)),
            None => {
                fs::unlinkat(above, name.as_slice(), AtFlags::REMOVEDIR)?;
                stack.pop();
            }
        }
    }
    Ok(())
}

/// Gives owner and times to what cannot be opened.
fn apply_owner_and_times(path: &PathAt<'_>, entry: &Entry) -> SysResult<()> {
    let (uid, gid) = owner(entry)?;
    let (parent, itself) = (&path.parent, AtFlags::SYMLINK_NOFOLLOW);
    fs::chownat(parent, path.name, Some(uid), Some(gid), itself)?;
    fs::utimensat(parent, path.name, &times(entry), itself)
}

/// Gives an open file or directory the entry's owner, mode, attributes and time, in the order in which none
/// undoes another.
pub(crate) fn apply_metadata(file: BorrowedFd<'_>, entry: &Entry) -> SysResult<()> {
    let (uid, gid) = owner(entry)?;
    fs::fchown(file, Some(uid), Some(gid))?;
    fs::fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))?;
    for (name, value) in entry
        .xattrs
        .iter()
        .filter(|(name, _)| is_allowed_attribute(name))
    {
        match fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            // The file system has no such attributes: programs cope, as they do on any node without them.
            Err(Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    fs::futimens(file, &times(entry))
}

/// File capabilities and user attributes; not overlayfs's own, nor labels and signatures of other machines.
fn is_allowed_attribute(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Owner ids that the kernel can store: -1 means "keep" to chown, -2 is the overflow id of some systems.
fn owner(entry: &Entry) -> SysResult<(Uid, Gid)> {
    let checked = |id: u64| {
        u32::try_from(id)
            .ok()
            .filter(|id| *id < u32::MAX - 1)
            .ok_or(Errno::OVERFLOW)
    };
    Ok((
        Uid::from_raw(checked(entry.uid)?),
        Gid::from_raw(checked(entry.gid)?),
    ))
}

/// The times of an open directory.
fn times_of(directory: &OwnedFd) -> SysResult<Timestamps> {
    let facts = fs::fstat(directory)?;
    // The kernel gives less than a second, which fits.
    let time = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: nanoseconds as i64,
    };
    Ok(Timestamps {
        last_access: time(facts.st_atime, facts.st_atime_nsec),
        last_modification: time(facts.st_mtime, facts.st_mtime_nsec),
    })
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.seconds,
        tv_nsec: entry.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
