//! One walk of a writable layer.
//!
//! Called by: the cache of their sizes, on a blocking thread. Calls: the file system.
//! Invariants: no link is followed; the memory of a walk is bounded, whatever a container has made: of a directory with
//! too many subdirectories some are walked before the rest of it is read, and of too many inodes with several names each
//! name counts as its part. Entries that vanish or are replaced meanwhile are skipped.
//! Must not know: containers.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_lifecycle::LayerUsage;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, open, openat2, statat};

use super::Known;

/// Directories below this depth are counted, but not their contents.
const MAX_DEPTH: usize = 4_096;
/// The memory of a walk for names that it remembers. Bytes.
const NAME_BYTES: usize = 8 << 20;
/// The part of what is left of it that one directory may take.
const SHARE: usize = 2;
/// Inodes with several names that a walk remembers, some 4 MiB; each name of further ones counts as its part.
const MAX_LINKED: usize = 1 << 17;
/// The longest path that is opened in one step, in bytes: PATH_MAX with room.
const STEP_BYTES: usize = 3_800;

/// A directory that was found, or the rest of one.
struct Found {
    /// The index in [`Walker::found`] of its parent, or of the directory whose rest it is; no index for the root.
    parent: usize,
    depth: usize,
    name: Box<OsStr>,
    /// Where the rest begins.
    rest: Option<i64>,
}

impl Found {
    /// What it takes in memory.
    fn bytes(&self) -> usize {
        // With its index in `pending`, and what the allocator adds.
        size_of::<Self>() + size_of::<usize>() + 16 + self.name.len()
    }
}

struct Walker {
    root: OwnedFd,
    /// Ancestors of the current directory and directories still to be entered, in the order found.
    found: Vec<Found>,
    /// Indexes in `found` that are still to be entered, the next one last.
    pending: Vec<usize>,
    /// Inodes with several names that were counted already, by device and number.
    linked: HashSet<(u64, u64)>,
    /// Inodes that are in no `linked`, by the parts that their names are.
    parts: f64,
    /// Memory for names that is left.
    room: usize,
    usage: LayerUsage,
    entries: u64,
    complete: bool,
}

/// Counts the tree in `directory`, up to `limit` entries and for no more than about `longest`; the second value tells
/// whether that was all of it.
pub(super) fn walk(directory: &Path, limit: u64, longest: Duration) -> io::Result<(Known, bool)> {
    let begun = Instant::now();
    let root = open(directory, directory_flags(), Mode::empty())?;
    let mut walker = Walker {
        found: Vec::new(),
        pending: Vec::new(),
        linked: HashSet::new(),
        parts: 0.0,
        room: NAME_BYTES,
        usage: LayerUsage::default(),
        entries: 0,
        complete: true,
        root,
    };
    walker.count(&rustix::fs::fstat(&walker.root)?);
    let whole = walker.root.try_clone()?;
    walker.list(Dir::new(whole)?, usize::MAX, 1, limit)?;
    while let Some(at) = walker.pending.pop() {
        if walker.entries >= limit || begun.elapsed() > longest {
            walker.complete = false;
            break;
        }
        walker.go_on(at, limit)?;
    }
    let known = Known {
        usage: LayerUsage {
            at: super::super::now(),
            inodes: walker.usage.inodes + walker.parts.round() as u64,
            ..walker.usage
        },
        seen: Instant::now(),
        took: begun.elapsed(),
        entries: walker.entries,
    };
    Ok((known, walker.complete))
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

pub(super) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Walker {
    fn count(&mut self, stat: &Stat) {
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let several = stat.st_nlink > 1 && !is_directory(stat);
        let at = (stat.st_dev, stat.st_ino);
        if several && self.linked.contains(&at) {
            return;
        }
        if several && self.linked.len() >= MAX_LINKED {
            // All its names are in the layer, unless the image gave it one.
            let part = 1.0 / stat.st_nlink as f64;
            self.parts += part;
            self.usage.bytes += (bytes as f64 * part) as u64;
            return;
        }
        if several {
            self.linked.insert(at);
        }
        self.usage.inodes += 1;
        self.usage.bytes += bytes;
    }

    /// Counts the entries of a directory that was found, or of its rest.
    fn go_on(&mut self, at: usize, limit: u64) -> io::Result<()> {
        // What follows is done with; of the rest of a directory, only its place counted.
        let (parent, depth, rest) = match &self.found[at] {
            Found {
                parent,
                depth,
                rest: Some(offset),
                ..
            } => (*parent, *depth, Some(*offset)),
            found => (at, found.depth + 1, None),
        };
        self.drop_from(if rest.is_some() { at } else { at + 1 });
        // Entries that vanished or were replaced meanwhile are skipped.
        let Ok(opened) = self.enter(parent) else {
            return Ok(());
        };
        let mut directory = Dir::new(opened)?;
        if let Some(offset) = rest {
            directory.seek(offset)?;
        }
        self.list(directory, parent, depth, limit)
    }

    fn drop_from(&mut self, at: usize) {
        for gone in self.found.drain(at..) {
            self.room += gone.bytes();
        }
    }

    fn remember(&mut self, found: Found) {
        self.room = self.room.saturating_sub(found.bytes());
        self.pending.push(self.found.len());
        self.found.push(found);
    }

    /// Counts the entries of a directory, which are at `depth`, and remembers its subdirectories; if they are too many,
    /// where the rest begins.
    fn list(&mut self, mut directory: Dir, at: usize, depth: usize, limit: u64) -> io::Result<()> {
        let (first, least) = (self.found.len(), self.room - self.room / SHARE);
        let mut offset = None;
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = entry.file_name();
            let here = offset.replace(entry.offset());
            if name == c"." || name == c".." {
                continue;
            }
            if self.entries >= limit {
                self.complete = false;
                break;
            }
            let Ok(stat) = statat(directory.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = is_directory(&stat);
            // One is always remembered, or there would be no end.
            if is_directory && self.found.len() > first && self.room < least {
                self.leave_rest(first, at, depth, here);
                break;
            }
            self.entries += 1;
            self.count(&stat);
            self.complete &= !is_directory || depth <= MAX_DEPTH;
            if is_directory && depth <= MAX_DEPTH {
                self.remember(Found {
                    parent: at,
                    depth,
                    name: OsStr::from_bytes(name.to_bytes()).into(),
                    rest: None,
                });
            }
        }
        Ok(())
    }

    /// Remembers that directory `at` is not done: after those of its subdirectories that are remembered, which begin at
    /// `first`, it goes on at `offset`.
    fn leave_rest(&mut self, first: usize, at: usize, depth: usize, offset: Option<i64>) {
        let children = self.found.len() - first;
        self.pending.truncate(self.pending.len() - children);
        let rest = Found {
            parent: at,
            depth,
            name: OsStr::new("").into(),
            rest: Some(offset.unwrap_or(0)),
        };
        self.room = self.room.saturating_sub(rest.bytes());
        self.found.insert(first, rest);
        self.pending.extend(first..=first + children);
    }

    /// Opens a directory by the names from the root, in steps that the kernel accepts; follows no link.
    fn enter(&self, at: usize) -> io::Result<OwnedFd> {
        let mut names = Vec::new();
        let mut next = self.found.get(at);
        if next.is_none() {
            return self.root.try_clone();
        }
        while let Some(found) = next {
            names.push(&*found.name);
            next = self.found.get(found.parent);
        }
        let mut opened: Option<OwnedFd> = None;
        let mut step = PathBuf::new();
        while let Some(name) = names.pop() {
            step.push(name);
            let room = names
                .last()
                .is_some_and(|next| step.as_os_str().len() + next.len() < STEP_BYTES);
            if room {
                continue;
            }
            let from = opened.as_ref().unwrap_or(&self.root);
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let reached = openat2(
                from.as_fd(),
                &step,
                directory_flags(),
                Mode::empty(),
                resolve,
            )?;
            opened = Some(reached);
            step.clear();
        }
        opened.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
