//! Packs an unpacked layer: a directory of the store becomes a tar, compressed with gzip, in a temporary file.
//!
//! Called by: the export. Invariants: names come from the directory by descriptors and no link is followed, so that nothing
//! outside is read; overlayfs's marks become whiteouts of the image specification; the same directory gives the same
//! bytes; the walk keeps the names in the directories above it and one for each file with several, within a bound, and nothing else.
//! Not here: which layers, documents.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use flate2::Compression;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::layout::{Asking, Packed, Whole};
use super::pax::{attributes, put_name, put_record, time, value};
use super::room::Room;
use crate::blobs::Blobs;
use crate::error::Error;
use crate::reference::Digest;
use crate::unpack::{OPAQUE, RATIO_FLOOR_BYTES};

/// Packs the layer in `directory` so that it unpacks to at most `max_ratio` times its size, as every import and pull demands:
/// one of long runs of the same bytes is not compressed. `is_wanted` ends it early, by an error. Blocking.
pub(super) fn pack(
    blobs: &Blobs,
    directory: &Path,
    max_ratio: u64,
    mut is_wanted: impl FnMut() -> io::Result<()>,
) -> Result<Packed, Error> {
    let (packed, bytes) = pack_by(blobs, directory, Compression::default(), &mut is_wanted)?;
    if bytes <= RATIO_FLOOR_BYTES || bytes / max_ratio.max(1) < packed.size {
        return Ok(packed);
    }
    drop(packed);
    let (packed, _) = pack_by(blobs, directory, Compression::none(), &mut is_wanted)?;
    Ok(packed)
}

/// Packs a layer. Returns the bytes of the tar, too.
fn pack_by(
    blobs: &Blobs,
    directory: &Path,
    level: Compression,
    is_wanted: &mut impl FnMut() -> io::Result<()>,
) -> Result<(Packed, u64), Error> {
    let temporary = blobs.new_file()?;
    let (path, file) = (temporary.path().to_owned(), temporary.file()?);
    let write = || {
        let flags = directory_flags();
        let root = openat(CWD, directory, flags, Mode::empty())?;
        let compressed = Hashed::new(io::BufWriter::with_capacity(128 << 10, file));
        let packer = flate2::write::GzEncoder::new(compressed, level);
        let mut walk = Walk {
            tar: tar::Builder::new(Hashed::new(packer)),
            links: HashMap::new(),
            room: Room::new(),
            is_wanted,
        };
        walk.all(root)?;
        let (packer, diff_id, bytes) = walk.tar.into_inner()?.end();
        let (mut out, digest, size) = packer.finish()?.end();
        out.flush()?;
        Ok((diff_id, digest, size, bytes))
    };
    let written: io::Result<_> = write();
    let doing = "pack the layer in";
    let (diff_id, digest, size, bytes) =
        written.map_err(|error| Error::io(doing, directory, error))?;
    tracing::debug!(layer = %directory.display(), packed = %path.display(), size, "packed a layer");
    let packed = Packed {
        diff_id,
        digest,
        size,
        temporary,
    };
    Ok((packed, bytes))
}

/// Passes bytes on, and takes their digest.
struct Hashed<W> {
    out: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Where they went, their digest, and how many they were.
    fn end(self) -> (W, Digest, u64) {
        (self.out, Digest::from_hasher(self.hasher), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What goes into the header of an entry.
struct Entry<'a> {
    kind: EntryType,
    path: &'a [u8],
    facts: &'a Stat,
    /// Of a link.
    target: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Of what is no link.
    fn new(kind: EntryType, path: &'a [u8], facts: &'a Stat) -> Self {
        Self {
            kind,
            path,
            facts,
            target: b"",
        }
    }
}

/// A walk through a layer.
struct Walk<W: Write, F> {
    tar: tar::Builder<W>,
    /// The first name of each file that has several.
    links: HashMap<u64, Vec<u8>>,
    room: Room,
    is_wanted: F,
}

/// A directory of the walk.
struct Level {
    directory: OwnedFd,
    /// Its path in the layer, with a slash at the end; empty for the root.
    path: Vec<u8>,
    /// The names that are left, last first.
    names: Vec<Vec<u8>>,
}

impl<W: Write, F: FnMut() -> io::Result<()>> Walk<W, F> {
    /// Writes everything below `root`, and the root itself.
    fn all(&mut self, root: OwnedFd) -> io::Result<()> {
        let facts = rustix::fs::fstat(&root)?;
        self.directory(b"./", &root, &facts, b"")?;
        let mut above = vec![Level {
            names: names(&root, &mut self.room)?,
            directory: root,
            path: Vec::new(),
        }];
        while let Some(level) = above.last_mut() {
            let Some(name) = level.names.pop() else {
                above.pop();
                continue;
            };
            self.room.release(&name);
            (self.is_wanted)()?;
            if let Some(inner) = self.name(level, &name)? {
                above.push(inner);
            }
        }
        Ok(())
    }

    /// Writes what has this name. Returns the directory to continue in, if it is one.
    fn name(&mut self, level: &Level, name: &[u8]) -> io::Result<Option<Level>> {
        let facts = statat(&level.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = [&level.path, name].concat();
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::Directory => {
                let inner = openat(&level.directory, name, directory_flags(), Mode::empty())?;
                let path = [&path[..], b"/"].concat();
                self.directory(&path, &inner, &facts, &path)?;
                return Ok(Some(Level {
                    names: names(&inner, &mut self.room)?,
                    directory: inner,
                    path,
                }));
            }
            FileType::RegularFile => self.file(level, name, &path, &facts)?,
            FileType::Symlink => {
                let target = readlinkat(&level.directory, name, Vec::new())?;
                let target = target.to_bytes();
                let entry = Entry {
                    target,
                    ..Entry::new(EntryType::Symlink, &path, &facts)
                };
                self.entry(&entry, Vec::new())?;
            }
            FileType::Fifo => {
                self.entry(&Entry::new(EntryType::Fifo, &path, &facts), Vec::new())?;
            }
            // The only devices of a layer: overlayfs's whiteouts.
            FileType::CharacterDevice if facts.st_rdev == 0 => {
                let path = [&level.path[..], b".wh.", name].concat();
                self.mark(&path)?;
            }
            _ => {
                let shown = path.escape_ascii();
                return Err(io::Error::other(format!(
                    "\"{shown}\" is of no kind that a layer has"
                )));
            }
        }
        Ok(None)
    }

    /// Writes a directory, and the mark of an opaque one in the directory `inside`.
    fn directory(
        &mut self,
        path: &[u8],
        directory: &OwnedFd,
        facts: &Stat,
        inside: &[u8],
    ) -> io::Result<()> {
        let entry = Entry::new(EntryType::Directory, path, facts);
        self.entry(&entry, attributes(directory)?)?;
        if value(directory, OPAQUE.as_bytes())?.as_deref() == Some(b"y") {
            self.mark(&[inside, b".wh..wh..opq"].concat())?;
        }
        Ok(())
    }

    fn file(&mut self, level: &Level, name: &[u8], path: &[u8], facts: &Stat) -> io::Result<()> {
        if facts.st_nlink > 1 {
            if let Some(first) = self.links.get(&facts.st_ino) {
                let target = &first.clone();
                let entry = Entry {
                    target,
                    ..Entry::new(EntryType::Link, path, facts)
                };
                return self.entry(&entry, Vec::new());
            }
            self.room.hold(path)?;
            self.links.insert(facts.st_ino, path.to_vec());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&level.directory, name, flags, Mode::empty())?;
        let mut extended = attributes(&file)?;
        let entry = Entry::new(EntryType::Regular, path, facts);
        let header = self.begin(&entry, &mut extended)?;
        let size = u64::try_from(facts.st_size).unwrap_or(0);
        let whole = Whole {
            bytes: File::from(file),
            left: size,
        };
        let asking = Asking::new(whole, &mut self.is_wanted);
        self.tar.append(&header, asking)
    }

    /// Writes an empty file that means something by its name.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let mut extended = Vec::new();
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_size(0);
        put_name(&mut header.as_old_mut().name, b"path", path, &mut extended);
        self.append(header, extended)
    }

    /// Writes an entry without data.
    fn entry(&mut self, entry: &Entry<'_>, mut extended: Vec<u8>) -> io::Result<()> {
        let header = self.begin(entry, &mut extended)?;
        self.tar.append(&header, io::empty())
    }

    /// Writes the extended header of an entry, and returns its header.
    fn begin(&mut self, entry: &Entry<'_>, extended: &mut Vec<u8>) -> io::Result<Header> {
        let Entry {
            kind,
            path,
            facts,
            target,
        } = *entry;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(facts.st_mode & 0o7777);
        header.set_uid(facts.st_uid.into());
        header.set_gid(facts.st_gid.into());
        let is_file = kind == EntryType::Regular;
        header.set_size(if is_file {
            u64::try_from(facts.st_size).unwrap_or(0)
        } else {
            0
        });
        header.set_mtime(u64::try_from(facts.st_mtime).unwrap_or(0));
        if facts.st_mtime < 0 || facts.st_mtime_nsec != 0 {
            let (seconds, nanoseconds) = (facts.st_mtime, facts.st_mtime_nsec);
            put_record(extended, b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        put_name(&mut header.as_old_mut().name, b"path", path, extended);
        put_name(
            &mut header.as_old_mut().linkname,
            b"linkpath",
            target,
            extended,
        );
        header.set_cksum();
        self.extended(extended)?;
        Ok(header)
    }

    fn append(&mut self, mut header: Header, extended: Vec<u8>) -> io::Result<()> {
        header.set_cksum();
        self.extended(&extended)?;
        self.tar.append(&header, io::empty())
    }

    /// Writes the extended header for the entry that follows, if it needs one.
    fn extended(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_path("PaxHeader")?;
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.tar.append(&header, records)
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// The names in a directory, last first.
fn names(directory: &OwnedFd, room: &mut Room) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            room.hold(name)?;
            names.push(name.to_vec());
        }
    }
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}
