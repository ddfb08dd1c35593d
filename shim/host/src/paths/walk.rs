//! Resolves a path one component at a time, so that it is known in which file system a step hangs.
//!
//! Called by: [`Lookup::open`]. Source: path_resolution(7), openat2(2).
//! Invariants: the lookup enters the location of a step before the step is taken; below a directory that was created
//! here no link is followed; nothing is created at a dangling link or behind a link of another user than root.
//! Must not know: options of mounts, logs.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, makedev, mkdirat,
    openat, openat2, readlinkat, statx,
};

use super::{Location, Lookup, Missing};

/// Most links in a path. Source: path_resolution(7).
const LINKS: usize = 40;
/// Mode of directories that are created.
const MODE: u32 = 0o755;

/// One step: a name or `..`, and whether it comes from a link.
struct Step {
    name: OsString,
    linked: bool,
}

/// The metadata of an open file.
struct Facts {
    device: u64,
    inode: u64,
    kind: FileType,
    uid: u32,
    mode: u16,
}

impl Facts {
    /// Whether others than root can replace what this directory has of root's. In a sticky one they cannot.
    fn is_changeable(&self) -> bool {
        const WRITABLE: u16 = 0o022;
        const STICKY: u16 = 0o1000;
        self.uid != 0 || (self.mode & WRITABLE != 0 && self.mode & STICKY == 0)
    }
}

/// Where a path leads.
pub(super) struct Opened {
    pub(super) file: OwnedFd,
    /// The first directory or link on the way that others than root can replace, or put another one into.
    pub(super) changeable: Option<OwnedFd>,
}

struct Walk<'a> {
    lookup: &'a Lookup<'a>,
    here: OwnedFd,
    facts: Facts,
    steps: VecDeque<Step>,
    links: usize,
    /// A link that does not belong to root was followed.
    misled: bool,
    changeable: Option<OwnedFd>,
    /// A directory was created: from here on only directories of ours follow.
    made: bool,
}

/// See [`Lookup::open`].
pub(super) fn open(lookup: &Lookup<'_>, path: &Path, missing: Missing) -> io::Result<Opened> {
    let here = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut walk = Walk {
        lookup,
        facts: facts(here.as_fd())?,
        here,
        steps: VecDeque::new(),
        links: 0,
        misled: false,
        changeable: None,
        made: false,
    };
    walk.expect(path, false);
    lookup.enter(Location::Device(walk.facts.device))?;
    while let Some(step) = walk.steps.pop_front() {
        match walk.take(&step.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                walk.make(&step, missing, error)?;
            }
            other => other?,
        }
    }
    Ok(Opened {
        file: walk.here,
        changeable: walk.changeable,
    })
}

impl Walk<'_> {
    /// Puts the components of `path` before the remaining ones.
    fn expect(&mut self, path: &Path, linked: bool) {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        let names: Vec<_> = names.collect();
        for name in names.into_iter().rev() {
            self.steps.push_front(Step { name, linked });
        }
    }

    fn take(&mut self, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::NO_XDEV;
        let next = match openat2(&self.here, name, flags, Mode::empty(), within) {
            Err(rustix::io::Errno::XDEV) => {
                let (device, inode) = (self.facts.device, self.facts.inode);
                self.lookup
                    .enter(Location::MountPoint(device, inode, name.to_owned()))?;
                openat(&self.here, name, flags, Mode::empty())?
            }
            other => other?,
        };
        let facts = facts(next.as_fd())?;
        self.lookup.enter(Location::Device(facts.device))?;
        if self.facts.is_changeable() && self.changeable.is_none() {
            self.changeable = Some(self.here.try_clone()?);
        }
        if facts.kind != FileType::Symlink {
            (self.here, self.facts) = (next, facts);
            return Ok(());
        }
        if self.made {
            return Err(rustix::io::Errno::LOOP.into());
        }
        self.follow(name, &next, facts.uid)
    }

    fn follow(&mut self, name: &OsStr, link: &OwnedFd, uid: u32) -> io::Result<()> {
        self.links += 1;
        self.misled |= uid != 0;
        if self.links > LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let is_magic = fstatfs(link)?.f_type == libc::PROC_SUPER_MAGIC;
        // Where a magic link leads depends on a process.
        if (uid != 0 || is_magic) && self.changeable.is_none() {
            self.changeable = Some(link.try_clone()?);
        }
        if is_magic {
            // The text of a magic link in proc need not be its target.
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            self.here = openat(&self.here, name, flags, Mode::empty())?;
            self.facts = facts(self.here.as_fd())?;
            return self.lookup.enter(Location::Device(self.facts.device));
        }
        let target = readlinkat(link, "", Vec::new())?;
        let target = OsString::from_vec(target.into_bytes());
        if target.is_empty() {
            return Err(rustix::io::Errno::NOENT.into());
        }
        if Path::new(&target).is_absolute() {
            self.here = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            self.facts = facts(self.here.as_fd())?;
        }
        self.expect(Path::new(&target), true);
        self.lookup.enter(Location::Device(self.facts.device))
    }

    /// Creates the directory that `step` did not find. Errors: `absent`, unless it may be created.
    fn make(&mut self, step: &Step, missing: Missing, absent: io::Error) -> io::Result<()> {
        if missing == Missing::Refuse {
            return Err(absent);
        }
        if step.linked {
            return Err(refused("a symbolic link in it leads to nothing"));
        }
        if self.misled {
            return Err(refused(
                "it is absent, and a symbolic link on the way is not root's",
            ));
        }
        match mkdirat(&self.here, &step.name, Mode::from_raw_mode(MODE)) {
            // Another process was faster.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.made = true;
        self.take(&step.name)?;
        match self.facts.kind {
            FileType::Directory => Ok(()),
            _ => Err(rustix::io::Errno::NOTDIR.into()),
        }
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// The metadata that the kernel has without asking a server.
fn facts(file: BorrowedFd<'_>) -> io::Result<Facts> {
    let flags = AtFlags::EMPTY_PATH
        | AtFlags::STATX_DONT_SYNC
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::UID | StatxFlags::MODE;
    let stat = statx(file, "", flags, wanted)?;
    Ok(Facts {
        device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        uid: stat.stx_uid,
        mode: stat.stx_mode,
    })
}
