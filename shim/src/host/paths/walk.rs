//! Resolves a path one component at a time, so that it is known in which filesystem a step hangs.
//!
//! Called by: [`Visit::open`]. Source: path_resolution(7), openat2(2).
//! Invariants: the visit is in the place of a step before the step is taken; below a directory that was made here no
//! link is followed; nothing is made where a link led to nothing or where somebody other than root led.
//! Must not know: mounts' options, logs.

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

use super::{Missing, Place, Visit};

/// Most links of a path. Source: path_resolution(7).
const LINKS: usize = 40;
/// Mode of directories that are made.
const MODE: u32 = 0o755;

/// One step: a name or `..`, and whether a link brought it.
struct Step {
    name: OsString,
    linked: bool,
}

/// What is known of an open file.
struct Facts {
    device: u64,
    inode: u64,
    kind: FileType,
    uid: u32,
}

struct Walk<'a> {
    visit: &'a Visit<'a>,
    here: OwnedFd,
    facts: Facts,
    steps: VecDeque<Step>,
    links: usize,
    /// A link of somebody other than root was followed.
    misled: bool,
    /// A directory was made: what follows must be directories of ours.
    made: bool,
}

/// See [`Visit::open`].
pub(super) fn open(visit: &Visit<'_>, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let here = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut walk = Walk {
        visit,
        facts: facts(here.as_fd())?,
        here,
        steps: VecDeque::new(),
        links: 0,
        misled: false,
        made: false,
    };
    walk.expect(path, false);
    visit.enter(Place::Device(walk.facts.device))?;
    while let Some(step) = walk.steps.pop_front() {
        match walk.take(&step.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                walk.make(&step, missing, error)?;
            }
            other => other?,
        }
    }
    Ok(walk.here)
}

impl Walk<'_> {
    /// Puts the components of `path` before what is still to come.
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
                self.visit
                    .enter(Place::MountPoint(device, inode, name.to_owned()))?;
                openat(&self.here, name, flags, Mode::empty())?
            }
            other => other?,
        };
        let facts = facts(next.as_fd())?;
        self.visit.enter(Place::Device(facts.device))?;
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
        if fstatfs(link)?.f_type == libc::PROC_SUPER_MAGIC {
            // What a link of proc says need not be where it leads.
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            self.here = openat(&self.here, name, flags, Mode::empty())?;
            self.facts = facts(self.here.as_fd())?;
            return self.visit.enter(Place::Device(self.facts.device));
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
        self.visit.enter(Place::Device(self.facts.device))
    }

    /// Makes the directory that `step` did not find. Errors: `absent`, unless it may be made.
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
            // Somebody was faster.
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

/// What the kernel knows without asking a server.
fn facts(file: BorrowedFd<'_>) -> io::Result<Facts> {
    let flags = AtFlags::EMPTY_PATH
        | AtFlags::STATX_DONT_SYNC
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::UID;
    let stat = statx(file, "", flags, wanted)?;
    Ok(Facts {
        device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        uid: stat.stx_uid,
    })
}
