//! An OCI layout to read from: a directory, or a tar that can be sought.
//!
//! Called by: `push`. Invariants: of a directory, which a stranger may have made, only regular files are read, and no link
//! leads out of it unless the operator says so; opening waits for nobody; documents have a maximum size, and a tar a maximum of files; what goes to
//! a registry has the digest that it is named by, or a stranger's layout could send any file that a link of it names.
//! Must not know: registries, the daemon.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::oci::{digest, shown};

/// The largest manifest or index. Bytes.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most files of a tar.
const MAX_FILES: usize = 1_000_000;

/// Which links of a directory are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Those that stay below it.
    Inside,
    /// Also those that lead out of it, as build systems make them.
    Outside,
}

impl Links {
    fn resolution(self) -> ResolveFlags {
        match self {
            Self::Inside => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            Self::Outside => ResolveFlags::NO_MAGICLINKS,
        }
    }
}

/// A layout.
pub(crate) struct Source {
    /// For messages.
    name: String,
    files: Files,
}

enum Files {
    Directory(OwnedFd, Links),
    /// The tar, and where each file lies in it: first byte, size.
    Tar(Arc<File>, HashMap<String, (u64, u64)>),
}

/// A part of a file.
pub(crate) struct Piece {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Piece {
    /// Bytes that are left to read.
    pub(crate) fn size(&self) -> u64 {
        self.left
    }
}

impl Piece {
    /// The same, once all of its bytes are known to be those of `digest`. Blocking. Errors: they are not, or cannot be read.
    fn verified(self, digest: &str) -> io::Result<Self> {
        let mut bytes = Self {
            file: self.file.clone(),
            ..self
        };
        let mut hasher = Sha256::new();
        io::copy(&mut bytes, &mut hasher)?;
        let is_named = shown(&hasher.finalize()) == digest;
        match is_named {
            true => Ok(self),
            false => Err(io::Error::other(
                "its bytes are not those that its name says: nothing of it is sent",
            )),
        }
    }
}

impl Read for Piece {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it is cut off",
            ));
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A descriptor of a layout.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    /// The names of the image, from its annotations.
    pub(crate) names: Vec<String>,
}

impl Descriptor {
    fn read(value: &Value) -> Option<Self> {
        let digest = value["digest"].as_str()?;
        let hex = digest.strip_prefix("sha256:")?;
        if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let annotations = &value["annotations"];
        let keys = [
            "io.containerd.image.name",
            "org.opencontainers.image.ref.name",
        ];
        let names = keys.iter().filter_map(|key| annotations[*key].as_str());
        Some(Self {
            digest: digest.to_owned(),
            media_type: value["mediaType"].as_str().unwrap_or_default().to_owned(),
            names: names.map(str::to_owned).collect(),
        })
    }

    /// Whether it is of an index.
    pub(crate) fn is_index(&self) -> bool {
        self.media_type.ends_with("image.index.v1+json")
            || self.media_type.ends_with("manifest.list.v2+json")
    }
}

impl Source {
    /// Opens a directory, following `links` of it, or a file. Errors: it is no OCI layout, or is compressed.
    pub(crate) fn open(path: &Path, links: Links) -> Result<Self, Error> {
        let name = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let failed = |error: io::Error| Error::because(&format!("read {name}"), error);
        let file = openat(CWD, path, flags, Mode::empty());
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        let kind = file.metadata().map_err(failed)?;
        if kind.is_dir() {
            let files = Files::Directory(file.into(), links);
            return Ok(Self { name, files });
        }
        if !kind.is_file() {
            return Err(Error::new(format!(
                "{name} is neither a file nor a directory"
            )));
        }
        Self::tar(name, file)
    }

    /// The tar `file`, called `name` in messages.
    pub(crate) fn tar(name: String, mut file: File) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::because(&format!("read {name}"), error);
        let mut first = [0; 4];
        file.rewind().map_err(failed)?;
        let count = file.read(&mut first).map_err(failed)?;
        if matches!(first[..count], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]) {
            return Err(Error::new(format!(
                "{name} is compressed; import it with `coracle image import`, and push the image"
            )));
        }
        file.rewind().map_err(failed)?;
        let mut places = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.header().entry_type().is_file() {
                let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let path = path.trim_start_matches("./").to_owned();
                if places.len() >= MAX_FILES {
                    return Err(Error::new(format!(
                        "{name} has more than {MAX_FILES} files"
                    )));
                }
                places.insert(path, (entry.raw_file_position(), entry.size()));
            }
        }
        let files = Files::Tar(Arc::new(file), places);
        Ok(Self { name, files })
    }

    /// The entries of its index. Errors: it has none.
    pub(crate) fn index(&self) -> Result<Vec<Descriptor>, Error> {
        let Some(file) = self.file("index.json")? else {
            return Err(Error::new(format!(
                "{} is no OCI layout: it has no index.json; `coracle image import` takes other archives",
                self.name
            )));
        };
        let index = self.parse("index.json", &self.read("index.json", file)?)?;
        Ok(self.descriptors(&index["manifests"]))
    }

    /// Those of a list of descriptors that can be used.
    fn descriptors(&self, list: &Value) -> Vec<Descriptor> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Descriptor::read).collect()
    }

    /// A manifest or an index, and what it names: manifests, or config and layers.
    pub(crate) fn document(&self, of: &Descriptor) -> Result<(Vec<u8>, Vec<Descriptor>), Error> {
        let bytes = self.read(&of.digest, self.blob(&of.digest)?)?;
        if digest(&bytes) != of.digest {
            return Err(Error::new(format!(
                "the document {} of {} has other bytes than its name says: nothing of it is sent",
                of.digest, self.name
            )));
        }
        let document = self.parse(&of.digest, &bytes)?;
        let mut named = self.descriptors(&document["manifests"]);
        named.extend(Descriptor::read(&document["config"]));
        named.extend(self.descriptors(&document["layers"]));
        Ok((bytes, named))
    }

    /// A blob. Errors: the layout lacks it.
    pub(crate) fn blob(&self, digest: &str) -> Result<Piece, Error> {
        let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        let found = self.file(&path)?;
        found.ok_or_else(|| Error::new(format!("{} lacks the blob {digest}", self.name)))
    }

    /// A blob whose bytes are those of its digest. Errors: they are not; the layout lacks it.
    pub(crate) async fn verified(&self, digest: &str) -> Result<Piece, Error> {
        let (piece, own) = (self.blob(digest)?, digest.to_owned());
        let verify = tokio::task::spawn_blocking(move || piece.verified(&own)).await;
        let failed = |error| Error::because(&format!("read {digest} of {}", self.name), error);
        verify
            .map_err(|error| failed(error.into()))?
            .map_err(failed)
    }

    /// A file. `None`: there is none.
    fn file(&self, path: &str) -> Result<Option<Piece>, Error> {
        let failed =
            |error: io::Error| Error::because(&format!("read {path} of {}", self.name), error);
        match &self.files {
            Files::Directory(directory, links) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = match openat2(directory, path, flags, Mode::empty(), links.resolution())
                {
                    Err(Errno::NOENT) => return Ok(None),
                    Err(Errno::XDEV) => {
                        let problem = "a symbolic link leads out of the layout; --follow-links reads what it names";
                        return Err(failed(io::Error::other(problem)));
                    }
                    Err(Errno::LOOP) => {
                        return Err(failed(io::Error::other("its symbolic links lead nowhere")));
                    }
                    file => File::from(file.map_err(|errno| failed(errno.into()))?),
                };
                let facts = file.metadata().map_err(failed)?;
                if !facts.is_file() {
                    return Err(failed(io::Error::other("it is no regular file")));
                }
                let (file, left) = (Arc::new(file), facts.len());
                Ok(Some(Piece { file, at: 0, left }))
            }
            Files::Tar(file, places) => {
                let piece = |&(at, left): &(u64, u64)| Piece {
                    file: file.clone(),
                    at,
                    left,
                };
                Ok(places.get(path).map(piece))
            }
        }
    }

    /// A document. Errors: it is too large.
    fn read(&self, what: &str, mut file: Piece) -> Result<Vec<u8>, Error> {
        if file.size() > MAX_DOCUMENT_BYTES {
            let (name, most) = (&self.name, MAX_DOCUMENT_BYTES >> 20);
            return Err(Error::new(format!(
                "{what} of {name} is larger than {most} MiB"
            )));
        }
        let mut bytes = Vec::new();
        let read = file.read_to_end(&mut bytes);
        read.map_err(|error| Error::because(&format!("read {what} of {}", self.name), error))?;
        Ok(bytes)
    }

    fn parse(&self, what: &str, bytes: &[u8]) -> Result<Value, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::because(&format!("read {what} of {}", self.name), error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, mknodat};

    use super::*;

    fn named(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn of_a_directory_nothing_but_its_own_regular_files_is_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "{}").unwrap();
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let name = |digit: char| blobs.join(digit.to_string().repeat(64));
        fs::write(name('a'), "blob").unwrap();
        symlink(outside.path().join("secret"), name('b')).unwrap();
        mknodat(CWD, name('c'), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(name('d')).unwrap();
        let source = Source::open(layout.path(), Links::Inside).unwrap();
        assert_eq!(source.blob(&named('a')).unwrap().size(), 4);
        for (digit, says) in [
            ('b', "--follow-links"),
            ('c', "no regular file"),
            ('d', "no regular file"),
            ('e', "lacks the blob"),
        ] {
            let refused = source.blob(&named(digit)).err().unwrap().to_string();
            assert!(refused.contains(says), "{refused}");
        }
        // A link above the file leads nowhere either.
        let other = tempfile::tempdir().unwrap();
        symlink(layout.path().join("blobs"), other.path().join("blobs")).unwrap();
        let open = |links: Links| Source::open(other.path(), links).unwrap();
        let refused = open(Links::Inside).blob(&named('a')).err().unwrap();
        assert!(refused.to_string().contains("--follow-links"), "{refused}");
        // The operator may want them. Of what they name still only regular files are read.
        let source = open(Links::Outside);
        assert_eq!(source.blob(&named('a')).unwrap().size(), 4);
        assert_eq!(source.blob(&named('b')).unwrap().size(), 2);
        let refused = source.blob(&named('c')).err().unwrap().to_string();
        assert!(refused.contains("no regular file"), "{refused}");
        let refused = Source::open(&name('c'), Links::Inside)
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("neither a file nor"), "{refused}");
    }

    #[tokio::test]
    async fn what_a_link_names_is_sent_only_if_it_has_the_digest_of_its_name() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("shadow");
        fs::write(&secret, "{\"root\": \"secret\"}").unwrap();
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        symlink(&secret, blobs.join("a".repeat(64))).unwrap();
        let honest = digest(b"blob");
        let store = outside.path().join("store");
        fs::write(&store, "blob").unwrap();
        symlink(&store, blobs.join(honest.trim_start_matches("sha256:"))).unwrap();
        let source = Source::open(layout.path(), Links::Outside).unwrap();
        let says = "nothing of it is sent";
        let refused = source.verified(&named('a')).await.err().unwrap();
        assert!(format!("{refused:?}").contains(says), "{refused:?}");
        let document = Descriptor {
            digest: named('a'),
            media_type: String::new(),
            names: Vec::new(),
        };
        let refused = source.document(&document).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
        let mut sent = String::new();
        let mut piece = source.verified(&honest).await.unwrap();
        assert_eq!(piece.size(), 4);
        piece.read_to_string(&mut sent).unwrap();
        assert_eq!(sent, "blob");
    }

    /// As Bazel, Nix and tools that save space leave layouts.
    #[test]
    fn links_that_stay_in_the_directory_are_followed() {
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir(layout.path().join("store")).unwrap();
        let file = layout.path().join("store/layer.tar");
        fs::write(&file, "blob").unwrap();
        let name = |digit: char| blobs.join(digit.to_string().repeat(64));
        symlink("../../store/layer.tar", name('a')).unwrap();
        fs::hard_link(&file, name('b')).unwrap();
        symlink(name('d'), name('c')).unwrap();
        symlink("e".repeat(64), name('d')).unwrap();
        symlink("d".repeat(64), name('e')).unwrap();
        let source = Source::open(layout.path(), Links::Inside).unwrap();
        for digit in ['a', 'b'] {
            assert_eq!(source.blob(&named(digit)).unwrap().size(), 4, "{digit}");
        }
        // By its whole name it leads out, and a circle nowhere.
        for (digit, says) in [('c', "--follow-links"), ('d', "lead nowhere")] {
            let refused = source.blob(&named(digit)).err().unwrap().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
