//! One layer: decompresses it, reads its entries and extracts each into the tree.
//!
//! Called by `wire` in the unpacker. Calls: `archive`, `meter`, `tree`.
//! Invariant: every input ends in a [`Verdict`]; on any but `Unpacked` the directory has part of the
//! layer, which the daemon removes. Not here: sockets, the jail.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::archive::{Archive, Entry, EntryKind};
use crate::meter::{Metered, Packed, Stop};
use crate::sparse::Sparse;
use crate::tree::{self, Mark, PathAt, Tree};
use crate::{
    Bounds, Compression, INODE_BYTES, IoOperation, Job, Limit, MAX_PROBLEM_BYTES, Unpacked, Verdict,
};

/// Bytes of a path that an error shows.
const SHOWN_PATH_BYTES: usize = 200;

/// Unpacks `blob` into `directory`, which is empty. `mark` makes a directory opaque.
pub(crate) fn unpack(job: &Job, blob: OwnedFd, directory: OwnedFd, mark: &Mark<'_>) -> Verdict {
    let layer = Layer {
        bounds: &job.bounds,
        tree: Tree::new(directory, mark),
    };
    match layer.run(job, File::from(blob)) {
        Ok(unpacked) => Verdict::Unpacked(unpacked),
        Err(verdict) => verdict,
    }
}

struct Layer<'a> {
    bounds: &'a Bounds,
    tree: Tree<'a>,
}

/// What an unpacked layer occupies.
struct Usage {
    bytes: u64,
    inodes: u64,
    /// Bytes of files that are in no archive and on no disk.
    holes: u64,
}

/// The bytes inside the packing; `given` counts them.
fn decoder(job: &Job, blob: File, given: &Rc<Cell<u64>>) -> io::Result<Box<dyn Read>> {
    let blob = Packed::new(blob, given.clone());
    let blob = io::BufReader::with_capacity(128 << 10, blob);
    Ok(match job.compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(blob)?;
            decoder.window_log_max(job.bounds.zstd_window_log)?;
            Box::new(decoder)
        }
    })
}

impl Layer<'_> {
    fn run(&self, job: &Job, blob: File) -> Result<Unpacked, Verdict> {
        let given = Rc::default();
        let decoder = decoder(job, blob, &given).map_err(unreadable)?;
        let bounds = self.bounds;
        let seen = Rc::clone(&given);
        let metered = Metered::new(decoder, given, bounds.bytes, job.packed_bytes, bounds.ratio);
        let mut archive = Archive::new(metered);
        let mut usage = Usage {
            bytes: INODE_BYTES,
            inodes: 1,
            holes: 0,
        };
        let mut entries = 0;
        while let Some(entry) = archive.next().map_err(unreadable)? {
            entries += 1;
            if entries > bounds.entries {
                return Err(Verdict::Limit(Limit::Entries));
            }
            let holes = entry.sparse.as_ref().map_or(0, Sparse::holes);
            usage.holes = usage.holes.saturating_add(holes);
            self.check_holes(seen.get(), &usage)?;
            self.extract(&mut archive, &entry, &mut usage)?;
            // One name can bring hundreds of directories, which occupy the disk as those with an entry do.
            let made = self.tree.take_made();
            usage.inodes += made;
            usage.bytes += made * INODE_BYTES;
            entries += made;
        }
        if entries > bounds.entries {
            return Err(Verdict::Limit(Limit::Entries));
        }
        let (archive_bytes, digest) = archive.finish().map_err(unreadable)?.finish();
        self.check_holes(archive_bytes, &usage)?;
        Ok(Unpacked {
            digest,
            bytes: usage.bytes,
            inodes: usage.inodes,
            archive_bytes: archive_bytes + usage.holes,
            entries,
        })
    }

    /// Holes cost no disk, but whoever reads the files reads them. Errors: with them, it is too much.
    fn check_holes(&self, seen: u64, usage: &Usage) -> Result<(), Verdict> {
        match seen.saturating_add(usage.holes) > self.bounds.bytes {
            true => Err(Verdict::Limit(Limit::Bytes)),
            false => Ok(()),
        }
    }

    /// Extracts one entry.
    fn extract<R: Read>(
        &self,
        archive: &mut Archive<R>,
        entry: &Entry,
        usage: &mut Usage,
    ) -> Result<(), Verdict> {
        let components = self.components(&entry.path)?;
        let Some(name) = components.last() else {
            return match entry.kind {
                EntryKind::Directory => written(self.tree.apply_root_metadata(entry), entry),
                _ => Err(bad_entry(&entry.path, "it is the root, but no directory")),
            };
        };
        if entry.kind == EntryKind::Device {
            return Ok(());
        }
        let mut path = written(self.tree.resolve(&components), entry)?;
        usage.inodes += 1;
        usage.bytes += INODE_BYTES;
        match name.strip_prefix(b".wh.") {
            Some(hidden) => self.hide(hidden, &mut path, entry)?,
            None => self.create(archive, entry, &path, usage)?,
        }
        written(path.restore_times(), entry)
    }

    /// Creates what the entry is.
    fn create<R: Read>(
        &self,
        archive: &mut Archive<R>,
        entry: &Entry,
        path: &PathAt<'_>,
        usage: &mut Usage,
    ) -> Result<(), Verdict> {
        let done = match entry.kind {
            EntryKind::Regular => return self.file(archive, entry, path, usage),
            EntryKind::Directory => self.tree.make_directory(path, entry),
            EntryKind::Symlink => self.tree.make_symlink(path, entry),
            EntryKind::Fifo => self.tree.make_fifo(path, entry),
            EntryKind::Hardlink => {
                usage.inodes -= 1;
                self.tree
                    .make_hardlink(path, &self.components(&entry.link)?)
            }
            EntryKind::Device => Ok(()),
        };
        written(done, entry)
    }

    /// Carries out a whiteout; `hidden` is what follows `.wh.` in its name.
    fn hide<'p>(
        &self,
        hidden: &'p [u8],
        path: &mut PathAt<'p>,
        entry: &Entry,
    ) -> Result<(), Verdict> {
        let done = match hidden {
            b".wh..opq" => self.tree.make_opaque(path),
            // Other names of this form belong to aufs, not to the image.
            other if other.starts_with(b".wh.") => Ok(()),
            b"" | b"." | b".." => return Err(bad_entry(&entry.path, "a whiteout of no file")),
            hidden => {
                path.go_to(hidden);
                self.tree.white_out(path)
            }
        };
        written(done, entry)
    }

    /// Writes a regular file.
    fn file<R: Read>(
        &self,
        archive: &mut Archive<R>,
        entry: &Entry,
        path: &PathAt<'_>,
        usage: &mut Usage,
    ) -> Result<(), Verdict> {
        let file = written(self.tree.create_file(path), entry)?;
        match &entry.sparse {
            None => usage.bytes += copy(archive, &file, u64::MAX, entry)?,
            Some(sparse) => {
                for (first, length) in &sparse.parts {
                    written(rustix::fs::seek(&file, SeekFrom::Start(*first)), entry)?;
                    usage.bytes += copy(archive, &file, *length, entry)?;
                }
                written(rustix::fs::ftruncate(&file, sparse.size), entry)?;
            }
        }
        written(tree::apply_metadata(file.as_fd(), entry), entry)
    }

    /// The names of a path. Absolute paths count from the layer's root. Errors: `..`, too long, too deep.
    fn components<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, Verdict> {
        if path.len() as u64 > self.bounds.path_bytes {
            return Err(Verdict::Limit(Limit::PathBytes));
        }
        let components: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !matches!(*name, b"" | b"."))
            .collect();
        if components.iter().any(|name| *name == b"..") {
            return Err(bad_entry(path, "`..` could lead out of the layer"));
        }
        if components.len() as u64 > self.bounds.path_depth {
            return Err(Verdict::Limit(Limit::PathDepth));
        }
        Ok(components)
    }
}

/// Writes the next data of an entry, at most `most` bytes. Returns how much there was.
fn copy<R: Read>(
    archive: &mut Archive<R>,
    file: &OwnedFd,
    most: u64,
    entry: &Entry,
) -> Result<u64, Verdict> {
    let (mut buffer, mut left) = ([0; 64 << 10], most);
    loop {
        let room = usize::try_from(left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let count = archive.read(&mut buffer[..room]).map_err(unreadable)?;
        if count == 0 {
            return Ok(most - left);
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let count = written(rustix::io::write(file, rest), entry)?;
            rest = &rest[count..];
        }
        left -= count as u64;
    }
}

/// The verdict on a call that made part of the tree: the image's fault, or the disk's.
fn written<T>(done: Result<T, Errno>, entry: &Entry) -> Result<T, Verdict> {
    let bad = |problem| bad_entry(&entry.path, problem);
    done.map_err(|errno| match errno {
        Errno::NOENT => bad("it links to a file that is not there"),
        Errno::PERM if entry.kind == EntryKind::Hardlink => bad("it links to a directory"),
        Errno::NOTDIR | Errno::EXIST | Errno::LOOP => bad("what lies above it is not a directory"),
        Errno::NAMETOOLONG => bad("a name is too long for the file system"),
        Errno::OVERFLOW => bad("its owner is not a user or group id"),
        Errno::INVAL => bad("the file system refuses its name or attributes"),
        other => Verdict::Io(IoOperation::Write, other.raw_os_error()),
    })
}

/// The verdict on a read: a limit, the image's fault, or the disk's.
fn unreadable(error: io::Error) -> Verdict {
    let stop = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Stop>());
    match (stop, error.raw_os_error()) {
        (Some(Stop(limit)), _) => Verdict::Limit(*limit),
        (None, Some(errno)) => Verdict::Io(IoOperation::Read, errno),
        (None, None) => invalid(format!("its archive cannot be read: {error}")),
    }
}

fn bad_entry(path: &[u8], problem: &str) -> Verdict {
    let shown = &path[..path.len().min(SHOWN_PATH_BYTES)];
    invalid(format!("entry \"{}\": {problem}", shown.escape_ascii()))
}

fn invalid(mut problem: String) -> Verdict {
    let end = problem.floor_char_boundary(MAX_PROBLEM_BYTES);
    problem.truncate(end);
    Verdict::Invalid(problem)
}

#[cfg(test)]
mod tests;
