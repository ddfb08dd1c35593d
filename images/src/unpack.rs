//! Turns a layer blob into a directory that overlayfs can stack.
//!
//! Place in the flow: the pull calls [`unpack`] on a blocking thread, for a blob whose digest is verified and
//! into a temporary directory that it renames when all went well.
//! Invariants: nothing outside that directory is touched (see `tree`); amounts are bounded by [`Budget`]
//! while they grow, not afterwards; the uncompressed bytes must have the digest the image config states.
//! Whiteouts become character devices 0/0 and opaque attributes. Device nodes are skipped.
//! Not here: where layers are kept, who mounts them.

mod archive;
mod tree;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::config::Limits;
use crate::error::Error;
use crate::reference::Digest;
use crate::verify::HashingReader;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use archive::list;
use archive::{Archive, Entry, Sort};
pub(crate) use tree::OPAQUE;
use tree::Tree;

/// How much a layer may give before its ratio is looked at. Bytes.
const RATIO_FLOOR_BYTES: u64 = 64 << 20;
/// What an inode is counted as, besides its data. Bytes.
const INODE_BYTES: u64 = 512;

/// What an image may still unpack; shared by its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    bytes_left: u64,
    entries_left: u64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bytes_left: limits.max_unpacked_bytes,
            entries_left: limits.max_entries,
            limits: limits.clone(),
        }
    }
}

/// One layer to unpack.
pub(crate) struct Source<'a> {
    /// The blob's file.
    pub path: &'a Path,
    pub digest: &'a Digest,
    pub media_type: &'a str,
    /// The digest of the uncompressed archive.
    pub diff_id: &'a Digest,
}

/// What an unpacked layer occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Unpacks `source` into the existing, empty directory `into`.
///
/// Stops soon after `cancelled` is set. On any error `into` holds part of the layer; the caller removes it.
pub(crate) fn unpack(
    source: &Source<'_>,
    into: &Path,
    budget: &mut Budget,
    cancelled: &AtomicBool,
) -> Result<Usage, Error> {
    let tree = Tree::open(into).map_err(|errno| Error::io("open", into, errno.into()))?;
    let mut unpacking = Unpacking { source, into, tree };
    let metered = metered(source, budget, cancelled)?;
    let mut archive = Archive::new(HashingReader::new(metered));
    let mut usage = Usage {
        bytes: INODE_BYTES,
        inodes: 1,
    };
    while let Some(entry) = archive
        .next()
        .map_err(|error| unpacking.unreadable(error))?
    {
        let left = budget.entries_left.checked_sub(1);
        budget.entries_left =
            left.ok_or_else(|| unpacking.limit("max_entries", budget.limits.max_entries))?;
        unpacking.place(&mut archive, &entry, &budget.limits, &mut usage)?;
    }
    let hashing = archive
        .finish()
        .map_err(|error| unpacking.unreadable(error))?;
    budget.bytes_left = budget.bytes_left.saturating_sub(hashing.inner().seen);
    let got = hashing.finish();
    if got != *source.diff_id {
        let (what, want) = (
            format!("uncompressed layer {}", source.digest),
            source.diff_id.clone(),
        );
        return Err(Error::DigestMismatch { what, want, got });
    }
    Ok(usage)
}

/// The uncompressed bytes of a layer, counted.
fn metered<'c>(
    source: &Source<'_>,
    budget: &Budget,
    cancelled: &'c AtomicBool,
) -> Result<Metered<'c, Box<dyn Read>>, Error> {
    let file = File::open(source.path).map_err(|error| Error::io("open", source.path, error))?;
    let packed = file
        .metadata()
        .map_err(|error| Error::io("stat", source.path, error))?
        .len();
    Ok(Metered {
        inner: decoder(source, file, &budget.limits)?,
        seen: 0,
        allowed: budget.bytes_left,
        ratio_allowed: packed
            .saturating_mul(budget.limits.max_ratio)
            .max(RATIO_FLOOR_BYTES),
        limits: budget.limits.clone(),
        cancelled,
    })
}

/// The one place that knows layer media types.
fn decoder<'a>(
    source: &Source<'_>,
    file: File,
    limits: &Limits,
) -> Result<Box<dyn Read + 'a>, Error> {
    let file = io::BufReader::with_capacity(128 << 10, file);
    let media_type = source.media_type;
    let family = media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.");
    Ok(match media_type {
        _ if !family => return Err(unknown_media_type(source)),
        gzip if gzip.ends_with(".tar+gzip") || gzip.ends_with(".tar.gzip") => {
            Box::new(flate2::bufread::MultiGzDecoder::new(file))
        }
        zstd if zstd.ends_with(".tar+zstd") || zstd.ends_with(".tar.zstd") => {
            let mut decoder = zstd::Decoder::with_buffer(file)
                .map_err(|error| Error::io("decompress", source.path, error))?;
            decoder
                .window_log_max(limits.max_zstd_window_log)
                .map_err(|error| Error::io("decompress", source.path, error))?;
            Box::new(decoder)
        }
        tar if tar.ends_with(".tar") => Box::new(file),
        _ => return Err(unknown_media_type(source)),
    })
}

fn unknown_media_type(source: &Source<'_>) -> Error {
    let problem = format!(
        "media type {:?} is not a tar, gzip or zstd layer",
        source.media_type
    );
    Error::invalid(format!("layer {}", source.digest), problem)
}

struct Unpacking<'a> {
    source: &'a Source<'a>,
    into: &'a Path,
    tree: Tree,
}

impl Unpacking<'_> {
    /// Puts one entry where it belongs.
    fn place<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        limits: &Limits,
        usage: &mut Usage,
    ) -> Result<(), Error> {
        let components = self.components(&entry.path, limits)?;
        let Some(name) = components.last() else {
            return match entry.sort {
                Sort::Directory => self.written(self.tree.dress_root(entry), entry),
                _ => Err(self.bad_entry(&entry.path, "it is the root, but no directory")),
            };
        };
        if entry.sort == Sort::Device {
            tracing::debug!(layer = %self.source.digest, path = %entry.path.escape_ascii(), "device node skipped");
            return Ok(());
        }
        let hidden = name.strip_prefix(b".wh.");
        let place = self.tree.place(&components);
        let place = self.written(place, entry)?;
        usage.inodes += 1;
        usage.bytes += INODE_BYTES;
        let done = match (hidden, entry.sort) {
            (Some(b".wh..opq"), _) => self.tree.make_opaque(&place),
            // Other names of this form belong to aufs, not to the image.
            (Some(other), _) if other.starts_with(b".wh.") => Ok(()),
            (Some(b"" | b"." | b".."), _) => {
                return Err(self.bad_entry(&entry.path, "a whiteout of no file"));
            }
            (Some(hidden), _) => self.tree.white_out(&place.beside(hidden)),
            (None, Sort::Regular) => return self.file(archive, entry, &place, usage),
            (None, Sort::Directory) => self.tree.make_directory(&place, entry),
            (None, Sort::Symlink) => self.tree.make_symlink(&place, entry),
            (None, Sort::Fifo) => self.tree.make_fifo(&place, entry),
            (None, Sort::Hardlink) => {
                usage.inodes -= 1;
                self.tree
                    .make_hardlink(&place, &self.components(&entry.link, limits)?)
            }
            (None, Sort::Device) => Ok(()),
        };
        self.written(done, entry)
    }

    /// Writes a regular file.
    fn file<R: Read>(
        &self,
        archive: &mut Archive<R>,
        entry: &Entry,
        place: &tree::Place<'_>,
        usage: &mut Usage,
    ) -> Result<(), Error> {
        let file = self.written(self.tree.create_file(place), entry)?;
        let mut buffer = [0; 64 << 10];
        loop {
            let count = archive
                .read(&mut buffer)
                .map_err(|error| self.unreadable(error))?;
            if count == 0 {
                break;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let written = self.written(rustix::io::write(&file, rest), entry)?;
                rest = &rest[written..];
            }
            usage.bytes += count as u64;
        }
        self.written(tree::dress(file.as_fd(), entry), entry)
    }

    /// The names of a path. Absolute paths count from the layer's root. Errors: `..`, too long, too deep.
    fn components<'p>(&self, path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, Error> {
        if path.len() as u64 > limits.max_path_bytes {
            return Err(self.limit("max_path_bytes", limits.max_path_bytes));
        }
        let components: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !matches!(*name, b"" | b"."))
            .collect();
        if components.iter().any(|name| *name == b"..") {
            return Err(self.bad_entry(path, "`..` could lead out of the layer"));
        }
        if components.len() as u64 > limits.max_path_depth {
            return Err(self.limit("max_path_depth", limits.max_path_depth));
        }
        Ok(components)
    }

    /// The verdict on a call that made part of the tree: the image's fault, or the disk's.
    fn written<T>(&self, done: Result<T, Errno>, entry: &Entry) -> Result<T, Error> {
        done.map_err(|errno| match errno {
            Errno::NOENT => self.bad_entry(&entry.path, "it links to a file that is not there"),
            Errno::PERM if entry.sort == Sort::Hardlink => {
                self.bad_entry(&entry.path, "it links to a directory")
            }
            Errno::NOTDIR | Errno::EXIST | Errno::LOOP => {
                self.bad_entry(&entry.path, "what lies above it is not a directory")
            }
            Errno::NAMETOOLONG => {
                self.bad_entry(&entry.path, "a name is too long for the file system")
            }
            Errno::OVERFLOW => self.bad_entry(&entry.path, "its owner is not a user or group id"),
            Errno::INVAL => self.bad_entry(
                &entry.path,
                "the file system refuses its name or attributes",
            ),
            other => Error::io("unpack into", self.into, other.into()),
        })
    }

    /// The verdict on a read: a limit, the image's fault, or the disk's.
    fn unreadable(&self, error: io::Error) -> Error {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Stop>())
        {
            Some(Stop::Limit(limit, allowed)) => self.limit(limit, *allowed),
            Some(Stop::Cancelled) => Error::Cancelled {
                doing: "unpacking a layer",
            },
            None if error.raw_os_error().is_some() => Error::io("read", self.source.path, error),
            None => Error::invalid(
                format!("layer {}", self.source.digest),
                format!("its archive cannot be read: {error}"),
            ),
        }
    }

    fn limit(&self, limit: &'static str, allowed: u64) -> Error {
        Error::Limit {
            what: format!("layer {}", self.source.digest),
            limit,
            allowed,
        }
    }

    fn bad_entry(&self, path: &[u8], problem: &str) -> Error {
        let shown: Vec<u8> = path.iter().take(200).copied().collect();
        Error::invalid(
            format!("layer {}", self.source.digest),
            format!("entry \"{}\": {problem}", shown.escape_ascii()),
        )
    }
}

/// Why a [`Metered`] reader stops.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("limit {0} of {1}")]
    Limit(&'static str, u64),
    #[error("cancelled")]
    Cancelled,
}

/// Counts uncompressed bytes and stops at the first that is too many.
struct Metered<'c, R> {
    inner: R,
    seen: u64,
    allowed: u64,
    ratio_allowed: u64,
    limits: Limits,
    cancelled: &'c AtomicBool,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other(Stop::Cancelled));
        }
        let count = self.inner.read(buffer)?;
        self.seen += count as u64;
        if self.seen > self.allowed {
            return Err(io::Error::other(Stop::Limit(
                "max_unpacked_bytes",
                self.limits.max_unpacked_bytes,
            )));
        }
        if self.seen > self.ratio_allowed {
            return Err(io::Error::other(Stop::Limit(
                "max_ratio",
                self.limits.max_ratio,
            )));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::error::Kind;

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

    /// A scratch directory with a layer to fill and a canary that nothing may touch.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("images-unpack-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("layer")).unwrap();
            fs::create_dir_all(path.join("canary/dir")).unwrap();
            fs::write(path.join("canary/file"), "untouched").unwrap();
            Self(path)
        }

        fn layer(&self) -> PathBuf {
            self.0.join("layer")
        }

        /// Everything that can be seen of the canary.
        fn canary(&self) -> Vec<(PathBuf, u32, i64, i64, u64, Vec<u8>)> {
            ["canary", "canary/dir", "canary/file"]
                .iter()
                .map(|name| {
                    let path = self.0.join(name);
                    let found = fs::symlink_metadata(&path).unwrap();
                    let data = fs::read(&path).unwrap_or_default();
                    (
                        path,
                        found.mode(),
                        found.mtime(),
                        found.ctime_nsec(),
                        found.nlink(),
                        data,
                    )
                })
                .collect()
        }

        fn unpack(&self, layer: &Layer) -> Result<Usage, Error> {
            self.unpack_as(
                &layer.bytes(),
                TAR,
                &Digest::of(&layer.bytes()),
                &Limits::default(),
            )
        }

        fn unpack_as(
            &self,
            blob: &[u8],
            media_type: &str,
            diff_id: &Digest,
            limits: &Limits,
        ) -> Result<Usage, Error> {
            let path = self.0.join("blob");
            fs::write(&path, blob).unwrap();
            let digest = Digest::of(blob);
            let source = Source {
                path: &path,
                digest: &digest,
                media_type,
                diff_id,
            };
            unpack(
                &source,
                &self.layer(),
                &mut Budget::new(limits),
                &AtomicBool::new(false),
            )
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Writes raw headers, so that names no honest tool would write can be written.
    #[derive(Default, Clone)]
    struct Layer(Vec<u8>);

    impl Layer {
        fn entry(mut self, kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Self {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_mode(0o644);
            header.set_uid(1000);
            header.set_gid(1000);
            header.set_mtime(1);
            header.set_size(data.len() as u64);
            header.set_cksum();
            self.0.extend_from_slice(header.as_bytes());
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(512), 0);
            self
        }

        fn file(self, name: &str, data: &[u8]) -> Self {
            self.entry(b'0', name.as_bytes(), b"", data)
        }

        fn dir(self, name: &str) -> Self {
            self.entry(b'5', name.as_bytes(), b"", b"")
        }

        fn pax(self, records: &[(&str, &[u8])]) -> Self {
            let mut data = Vec::new();
            for (key, value) in records {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length != rest + length.to_string().len() {
                    length += 1;
                }
                data.extend_from_slice(format!("{length} {key}=").as_bytes());
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            self.entry(b'x', b"pax", b"", &data)
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = self.0.clone();
            bytes.resize(bytes.len() + 1024, 0);
            bytes
        }
    }

    #[test]
    fn hostile_names_reach_nothing_outside() {
        let scratch = Scratch::new("hostile");
        let outside = scratch
            .0
            .join("canary")
            .into_os_string()
            .into_string()
            .unwrap();
        let up = "../".repeat(10) + outside.trim_start_matches('/');
        let through = |target: &str| Layer::default().entry(b'2', b"l", target.as_bytes(), b"");
        let before = scratch.canary();
        let refused = [
            ("dots", Layer::default().file("../canary/file", b"x")),
            (
                "dots inside",
                Layer::default().file("a/../../canary/file", b"x"),
            ),
            (
                "dots in a PAX name",
                Layer::default()
                    .pax(&[("path", b"../canary/file")])
                    .file("a", b"x"),
            ),
            (
                "through an absolute link",
                through(&outside).file("l/file", b"x"),
            ),
            (
                "through a relative link",
                through("../canary").file("l/file", b"x"),
            ),
            ("through many dots", through(&up).file("l/file", b"x")),
            (
                "hardlink out",
                Layer::default().entry(b'1', b"h", format!("{outside}/file").as_bytes(), b""),
            ),
            (
                "hardlink by dots",
                Layer::default().entry(b'1', b"h", b"../canary/file", b""),
            ),
            (
                "hardlink through a link",
                through(&outside).entry(b'1', b"h", b"l/file", b""),
            ),
            (
                "whiteout through a link",
                through(&outside).file("l/.wh.file", b""),
            ),
            ("whiteout of ..", Layer::default().file(".wh...", b"")),
            ("whiteout of .", Layer::default().file("a/.wh..", b"")),
            ("whiteout of nothing", Layer::default().file(".wh.", b"")),
            (
                "magic link",
                through("/proc/self/root").file("l/tmp/x", b"x"),
            ),
            (
                "root as a file",
                Layer::default().file("/", b"").file(".", b"x"),
            ),
        ];
        for (name, layer) in refused {
            let refused = scratch.unpack(&layer).expect_err(name);
            assert_eq!(refused.kind(), Kind::Invalid, "{name}: {refused}");
            assert_eq!(scratch.canary(), before, "{name}");
            fs::remove_dir_all(scratch.layer()).unwrap();
            fs::create_dir(scratch.layer()).unwrap();
        }
        // An absolute name counts from the layer's root; a directory replaces a link of the same name.
        let layer = through(&outside)
            .dir("l")
            .file("l/file", b"mine")
            .file("/etc/x", b"y");
        scratch.unpack(&layer).unwrap();
        assert_eq!(scratch.canary(), before);
        assert_eq!(fs::read(scratch.layer().join("l/file")).unwrap(), b"mine");
        assert_eq!(fs::read(scratch.layer().join("etc/x")).unwrap(), b"y");
    }

    #[test]
    fn links_are_followed_inside_the_layer() {
        let scratch = Scratch::new("inside");
        let layer = Layer::default()
            .dir("usr/lib")
            .entry(b'2', b"lib", b"/usr/lib", b"")
            .file("lib/a", b"a")
            .entry(b'1', b"lib/b", b"lib/a", b"")
            .entry(b'1', b"lib/a", b"usr/lib/a", b"");
        scratch.unpack(&layer).unwrap();
        assert_eq!(fs::read(scratch.layer().join("usr/lib/b")).unwrap(), b"a");
        assert_eq!(
            fs::metadata(scratch.layer().join("usr/lib/a"))
                .unwrap()
                .nlink(),
            2
        );
    }

    #[test]
    fn whiteouts_become_what_overlayfs_reads() {
        let scratch = Scratch::new("whiteout");
        let layer = Layer::default()
            .file("a/.wh.gone", b"")
            .file("b/own", b"1")
            .file("b/.wh..wh..opq", b"")
            .file(".wh.back", b"")
            .dir("back")
            .file(".wh.file", b"")
            .file("file", b"2")
            .file("late", b"3")
            .file(".wh.late", b"")
            .file(".wh..wh.plnk", b"");
        scratch.unpack(&layer).unwrap();
        let at = |name: &str| scratch.layer().join(name);
        let gone = fs::symlink_metadata(at("a/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        let is_opaque = |name: &str| {
            let mut value = [0; 4];
            rustix::fs::getxattr(at(name), OPAQUE, &mut value)
                .is_ok_and(|count| &value[..count] == b"y")
        };
        assert!(is_opaque("b") && is_opaque("back") && !is_opaque("a"));
        assert_eq!(fs::read(at("b/own")).unwrap(), b"1");
        assert_eq!(fs::read(at("file")).unwrap(), b"2");
        assert_eq!(fs::read(at("late")).unwrap(), b"3");
        let names: Vec<_> = fs::read_dir(scratch.layer())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            names
                .iter()
                .all(|name| !name.to_string_lossy().starts_with(".wh.")),
            "{names:?}"
        );
    }

    #[test]
    fn owners_modes_and_harmless_attributes_are_kept() {
        let scratch = Scratch::new("dress");
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let layer = Layer::default()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.capability", &capability),
                ("uid", b"70000"),
            ])
            .file("f", b"x")
            .entry(b'3', b"dev/mem", b"", b"")
            .entry(b'6', b"fifo", b"", b"");
        scratch.unpack(&layer).unwrap();
        let path = scratch.layer().join("f");
        let found = fs::metadata(&path).unwrap();
        assert_eq!(
            (
                found.uid(),
                found.gid(),
                found.mode() & 0o7777,
                found.mtime()
            ),
            (70000, 1000, 0o644, 1)
        );
        let mut names = [0; 256];
        let count = rustix::fs::listxattr(&path, &mut names).unwrap();
        assert_eq!(&names[..count], b"security.capability\0");
        assert!(
            !scratch.layer().join("dev/mem").exists(),
            "device nodes are skipped"
        );
        assert!(
            fs::symlink_metadata(scratch.layer().join("fifo"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        let refused = scratch
            .unpack(
                &Layer::default()
                    .pax(&[("uid", b"4294967295")])
                    .file("g", b""),
            )
            .unwrap_err();
        assert!(refused.to_string().contains("owner"), "{refused}");
    }

    #[test]
    fn amounts_are_bounded_while_they_grow() {
        let scratch = Scratch::new("limits");
        let check = |blob: &[u8], media_type: &str, limits: &Limits, limit_name: &str| match scratch
            .unpack_as(blob, media_type, &Digest::of(b""), limits)
        {
            Err(Error::Limit { limit, .. }) => assert_eq!(limit, limit_name),
            other => panic!("{limit_name}: {other:?}"),
        };
        let three = Layer::default()
            .file("1", b"")
            .file("2", b"")
            .file("3", b"")
            .bytes();
        check(
            &three,
            TAR,
            &Limits {
                max_entries: 2,
                ..Limits::default()
            },
            "max_entries",
        );
        check(
            &three,
            TAR,
            &Limits {
                max_unpacked_bytes: 1500,
                ..Limits::default()
            },
            "max_unpacked_bytes",
        );
        let deep = Layer::default()
            .pax(&[("path", "d/".repeat(257).as_bytes())])
            .dir("d")
            .bytes();
        check(&deep, TAR, &Limits::default(), "max_path_depth");
        let long = Layer::default()
            .pax(&[("path", &[b'x'; 5000])])
            .file("d", b"")
            .bytes();
        check(&long, TAR, &Limits::default(), "max_path_bytes");
        let zeros = Layer::default().file("zeros", &vec![0; 80 << 20]).bytes();
        check(
            &gzip(&zeros),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &Limits::default(),
            "max_ratio",
        );
        let window = zstd::encode_all(&zeros[..], 1).unwrap();
        check(
            &window,
            "application/vnd.oci.image.layer.v1.tar+zstd",
            &Limits::default(),
            "max_ratio",
        );
    }

    #[test]
    fn broken_archives_are_told_apart() {
        let scratch = Scratch::new("broken");
        let good = Layer::default().file("f", b"hello").bytes();
        let gz = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let diff_id = Digest::of(&good);
        let unpack = |blob: &[u8], media_type: &str| {
            scratch.unpack_as(blob, media_type, &diff_id, &Limits::default())
        };
        unpack(&gzip(&good), gz).unwrap();
        unpack(&good, TAR).unwrap();
        unpack(
            &zstd::encode_all(&good[..], 1).unwrap(),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        )
        .unwrap();
        let mut flipped = good.clone();
        flipped[512] ^= 1;
        let other = unpack(&flipped, TAR).unwrap_err();
        assert!(
            matches!(&other, Error::DigestMismatch { want, got, .. } if *want == diff_id && *got == Digest::of(&flipped))
        );
        let mut trailer = gzip(&good);
        let last = trailer.len() - 5;
        trailer[last] ^= 1;
        let mut checksum = good.clone();
        checksum[0] ^= 1;
        for (blob, media_type) in [
            (&trailer[..], gz),
            (&gzip(&good)[..30], gz),
            (&good[..700], TAR),
            (&good[..100], TAR),
            (&checksum, TAR),
            (&good, gz),
            (&good, "application/octet-stream"),
            (&good, "application/vnd.oci.image.layer.v1.tar+xz"),
        ] {
            let refused = unpack(blob, media_type).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
        }
    }

    #[test]
    fn a_directory_that_becomes_a_file_is_replaced_whole() {
        let scratch = Scratch::new("replace");
        symlink("/", scratch.0.join("root")).unwrap();
        let layer = Layer::default()
            .file("d/e/f", b"1")
            .entry(
                b'2',
                b"d/e/out",
                scratch.0.join("canary").to_str().unwrap().as_bytes(),
                b"",
            )
            .file("d/g", b"2")
            .file("d", b"now a file");
        let before = scratch.canary();
        scratch.unpack(&layer).unwrap();
        assert_eq!(fs::read(scratch.layer().join("d")).unwrap(), b"now a file");
        assert_eq!(scratch.canary(), before);
        assert_eq!(
            fs::metadata(scratch.layer()).unwrap().permissions().mode() & 0o777,
            0o755
        );
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }
}
