//! Reads a tar stream entry by entry: untrusted bytes in, plain values out. Pure but for the reader.
//!
//! Called by `layer`; reads from the decompressor.
//! Invariants: all extension headers of one entry together are at most [`EXTENSION_MAX_BYTES`] and are dropped with
//! the entry; a size in a PAX record replaces the header's for the data that follows, and for nothing else, so that
//! our list of entries equals that of other readers; unknown input is refused.
//! Not here: paths' meaning, the disk.

mod maps;

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::pax::{self, bad, number};
use crate::sparse::{self, Sparse};
use crate::time::Time;

/// The most that long names, PAX headers and the map of a sparse file of one entry may hold together. Bytes.
const EXTENSION_MAX_BYTES: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
    Device,
}

/// One entry; its data, if it is [`EntryKind::Regular`], is read from the archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Time,
    /// Where the data belongs in a file with holes.
    pub sparse: Option<Sparse>,
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream.
pub(crate) struct Archive<R> {
    reader: R,
    data_left: u64,
    padding: u64,
    /// What extension headers of the current entry may still hold. Bytes.
    extension_left: u64,
}

/// The values of extension headers for the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    sparse: sparse::Records,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            data_left: 0,
            padding: 0,
            extension_left: EXTENSION_MAX_BYTES,
        }
    }

    /// The next entry; skips what is left of the one before. `None` at the end-of-archive mark or at the end of
    /// the stream between two entries. Errors: the reader's own, or `InvalidData`.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        self.extension_left = EXTENSION_MAX_BYTES;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = or_blank(&header.as_old().size, header.entry_size())?;
            self.begin_data(size);
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.text()?),
                EntryType::GNULongLink => extensions.link = Some(self.text()?),
                EntryType::XHeader => extensions.read_pax(&self.extension()?)?,
                EntryType::XGlobalHeader => drop(self.extension()?),
                other => {
                    let size = extensions.size.unwrap_or(size);
                    self.begin_data(size);
                    let sparse = self.sparse(&header, &mut extensions)?;
                    return extensions.finish(&header, other, sparse).map(Some);
                }
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside an entry",
            ));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    /// Reads to the very end, past the end-of-archive mark, and gives the reader back.
    pub(crate) fn finish(mut self) -> io::Result<R> {
        io::copy(&mut self.reader, &mut io::sink())?;
        Ok(self.reader)
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = self.data_left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.reader).take(left), &mut io::sink())?;
        self.begin_data(0);
        if skipped < left {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside an entry",
            ));
        }
        Ok(())
    }

    /// One header block, its checksum verified.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let count = fill(&mut self.reader, header.as_mut_bytes())?;
        if count == 0 {
            return Ok(None);
        }
        if count < header.as_bytes().len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside a header",
            ));
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let mut second = [0; BLOCK as usize];
            let count = fill(&mut self.reader, &mut second)?;
            if second[..count].iter().any(|byte| *byte != 0) {
                return Err(bad("an entry follows half an end mark"));
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        if header.cksum()? != sum {
            return Err(bad("a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// Counts an extension of `size` bytes, and its header or block. Errors: it is too much.
    fn pay(&mut self, size: u64) -> io::Result<()> {
        let left = self.extension_left.checked_sub(size.saturating_add(BLOCK));
        let too_large = || bad("extended headers of one entry are larger than 1 MiB");
        self.extension_left = left.ok_or_else(too_large)?;
        Ok(())
    }

    /// The whole data of an extension entry.
    fn extension(&mut self) -> io::Result<Vec<u8>> {
        // An empty one counts, too.
        self.pay(self.data_left)?;
        let mut data = vec![0; usize::try_from(self.data_left).unwrap_or(usize::MAX)];
        let mut at = 0;
        while at < data.len() {
            at += self.read(&mut data[at..])?;
        }
        Ok(data)
    }

    /// An extension entry that is one NUL-terminated text.
    fn text(&mut self) -> io::Result<Vec<u8>> {
        let mut data = self.extension()?;
        if let Some(end) = data.iter().position(|byte| *byte == 0) {
            data.truncate(end);
        }
        Ok(data)
    }
}

impl Extensions {
    fn read_pax(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (key, value) = pax::record(&mut data)?;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value)?),
                b"uid" => self.uid = Some(number(value)?),
                b"gid" => self.gid = Some(number(value)?),
                b"mtime" => self.mtime = Some(pax::time(value)?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.read(key, value)?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self, header: &Header, kind: EntryType, sparse: Option<Sparse>) -> io::Result<Entry> {
        let path = self.path;
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = entry_kind(kind, &path)?;
        let entry = Entry {
            path,
            link: self
                .link
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            kind,
            mode: or_blank(&header.as_old().mode, header.mode())?,
            uid: self
                .uid
                .map_or_else(|| or_blank(&header.as_old().uid, header.uid()), Ok)?,
            gid: self
                .gid
                .map_or_else(|| or_blank(&header.as_old().gid, header.gid()), Ok)?,
            mtime: match self.mtime {
                Some(mtime) => mtime,
                None => Time {
                    seconds: i64::try_from(or_blank(&header.as_old().mtime, header.mtime())?)
                        .unwrap_or(i64::MAX),
                    nanoseconds: 0,
                },
            },
            sparse,
            xattrs: self.xattrs,
        };
        if entry.sparse.is_some() && entry.kind != EntryKind::Regular {
            return Err(bad("only a file can be sparse"));
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(bad("a name holds a NUL byte"));
        }
        Ok(entry)
    }
}

/// One entry of an archive. For fuzzing.
#[cfg(feature = "fuzzing")]
pub struct Listed {
    /// Its name.
    pub path: Vec<u8>,
    /// What it links to; empty for no link.
    pub link: Vec<u8>,
    /// Bytes of names and values of its extended attributes.
    pub attributes: usize,
    /// Bytes of its data.
    pub data: usize,
}

/// All entries of an archive, read to its end. For fuzzing. Errors: as the reader's.
#[cfg(feature = "fuzzing")]
pub fn list(bytes: &[u8]) -> io::Result<Vec<Listed>> {
    let mut archive = Archive::new(bytes);
    let (mut listed, mut buffer) = (Vec::new(), [0; 4096]);
    while let Some(entry) = archive.next()? {
        let mut data = 0;
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                count => data += count,
            }
        }
        let sizes = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        listed.push(Listed {
            attributes: sizes.sum(),
            path: entry.path,
            link: entry.link,
            data,
        });
    }
    archive.finish()?;
    Ok(listed)
}

/// The kind of an entry with this name: that of an extended header, if it has one. The name in the header itself may be cut.
fn entry_kind(kind: EntryType, path: &[u8]) -> io::Result<EntryKind> {
    Ok(match kind {
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::Regular,
        EntryType::Link => EntryKind::Hardlink,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char | EntryType::Block => EntryKind::Device,
        other => {
            return Err(bad(&format!(
                "entry type {:?} is not known",
                char::from(other.as_byte())
            )));
        }
    })
}

/// A field that is all blanks means 0, as every reader has it; some writers leave them so.
fn or_blank<T: Default>(field: &[u8], value: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        Ok(T::default())
    } else {
        value
    }
}

/// Fills `buffer` as far as the stream goes.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match reader.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
