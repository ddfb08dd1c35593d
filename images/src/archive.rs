//! An archive of images, unpacked: an OCI layout, or what `docker save` and its like write (docker-archive).
//!
//! Made by the import from a directory that an unpacker has filled; the pull reads documents and blobs from it.
//! Invariants: whoever wrote the archive is a stranger: every name is opened beneath its directory, links may not lead
//! out, only regular files are read, documents have a maximum size; what is read here is verified by the pull.
//! Not here: tar and compression (the unpacker's), which names the images get ([`crate::import`]).

mod docker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::blobs::Temporary;
use crate::config::Limits;
use crate::error::Error;
use crate::manifest::{self, Document, Entry, PlatformPreference};
use crate::reference::{Digest, ImageRef, Target};

/// The annotation that containerd and BuildKit write the whole name of an image into.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
/// The annotation of the image specification: a tag alone, or a whole name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Most names of all images of an archive.
const MAX_NAMES: u64 = 256;
/// Most names that an error lists.
const LISTED_NAMES: usize = 8;

/// An unpacked archive, deleted when this is dropped.
pub(crate) struct Archive {
    /// For messages: the file that it was.
    name: String,
    root: OwnedFd,
    /// Documents that are made here: the manifests of a docker-archive.
    documents: HashMap<Digest, Vec<u8>>,
    /// Where blobs are that have no name by their digest.
    files: HashMap<Digest, String>,
    _directory: Temporary,
}

/// One image of an archive.
#[derive(Debug)]
pub(crate) struct Found {
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// Its names, not empty; sorted as in the archive.
    pub references: Vec<ImageRef>,
    /// Whether `digest` is one that a registry would know it by.
    pub has_digest: bool,
}

impl Found {
    /// Errors: `reference` is by a digest that is not this image's, or that no registry would know it by.
    pub(crate) fn check_digest(&self, archive: &str, reference: &ImageRef) -> Result<(), Error> {
        let Target::Digest(wanted) = reference.target() else {
            return Ok(());
        };
        let problem = match self.has_digest {
            true if *wanted == self.digest => return Ok(()),
            true => format!(
                "its image is not {reference}: it has the digest {}",
                self.digest
            ),
            false => format!(
                "its image cannot be {reference}: a docker-archive does not have the digest"
            ),
        };
        Err(Error::invalid(archive, problem))
    }
}

impl Archive {
    /// The archive `name` that was unpacked into `directory`. Blocking. Errors: the directory cannot be opened.
    pub(crate) fn open(name: String, directory: Temporary) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, directory.path(), flags, Mode::empty())
            .map_err(|errno| Error::io("open", directory.path(), errno.into()))?;
        Ok(Self {
            name,
            root,
            documents: HashMap::new(),
            files: HashMap::new(),
            _directory: directory,
        })
    }

    /// The file that it was, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Finds its images: all that have a name, or the only one, which gets the name `reference`. Blocking.
    ///
    /// Errors: it is no archive of images; it holds none that has a name, or several for one `reference`.
    pub(crate) fn find(
        &mut self,
        reference: Option<&ImageRef>,
        platform: PlatformPreference,
        limits: &Limits,
    ) -> Result<Vec<Found>, Error> {
        if let Some(entries) = self.index(limits)? {
            let found = match reference {
                Some(reference) => vec![self.only(&entries, reference, platform)?],
                None => self.named(&entries, platform)?,
            };
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let found = docker::find(self, reference, limits)?;
        if found.is_empty() {
            let problem = "none of its images has a whole name; name one with --ref";
            return Err(Error::invalid(self.name.clone(), problem));
        }
        Ok(found)
    }

    /// The entries of `index.json`; `None` if there is none.
    fn index(&self, limits: &Limits) -> Result<Option<Vec<Entry>>, Error> {
        let Some(bytes) = self.read("index.json", limits.max_manifest_bytes)? else {
            return Ok(None);
        };
        let what = format!("index.json of {}", self.name);
        match manifest::parse(&what, &bytes, limits)? {
            Document::Index(entries) => Ok(Some(entries)),
            Document::Manifest(_) => Err(Error::invalid(what, "it is a manifest, not an index")),
        }
    }

    /// The one image of an index, named `reference`: several entries are one image for several platforms.
    fn only(
        &self,
        entries: &[Entry],
        reference: &ImageRef,
        platform: PlatformPreference,
    ) -> Result<Found, Error> {
        let names: BTreeSet<String> = entries.iter().map(any_name).collect();
        self.check_names(names.len())?;
        if names.len() > 1 {
            let names: Vec<String> = names.into_iter().take(LISTED_NAMES).collect();
            let names = names.join(", ");
            let problem = format!("it holds several images, {names}; --ref names one");
            return Err(Error::invalid(self.name.clone(), problem));
        }
        let what = format!("index.json of {}", self.name);
        let digest = match entries {
            [only] => only.blob.digest.clone(),
            several => manifest::choose(&what, several, platform)?.digest,
        };
        Ok(Found {
            digest,
            references: vec![reference.clone()],
            has_digest: true,
        })
    }

    /// Errors: they are too many.
    fn check_names(&self, count: usize) -> Result<(), Error> {
        if count as u64 > MAX_NAMES {
            return Err(Error::Limit {
                what: format!("index.json of {} with {count} names", self.name),
                limit: "of names in an archive",
                allowed: MAX_NAMES,
            });
        }
        Ok(())
    }

    /// The images of an index that have whole names.
    fn named(&self, entries: &[Entry], platform: PlatformPreference) -> Result<Vec<Found>, Error> {
        let mut by_name: BTreeMap<String, (ImageRef, Vec<Entry>)> = BTreeMap::new();
        for entry in entries {
            let Some(reference) = full_name(entry) else {
                continue;
            };
            let (_, group) = by_name
                .entry(reference.to_string())
                .or_insert_with(|| (reference, Vec::new()));
            group.push(entry.clone());
        }
        self.check_names(by_name.len())?;
        let mut found: Vec<Found> = Vec::new();
        for (name, (reference, group)) in by_name {
            let digest = match group.as_slice() {
                [only] => only.blob.digest.clone(),
                several => manifest::choose(&name, several, platform)?.digest,
            };
            match found.iter_mut().find(|image| image.digest == digest) {
                Some(same) => same.references.push(reference),
                None => found.push(Found {
                    digest,
                    references: vec![reference],
                    has_digest: true,
                }),
            }
        }
        Ok(found)
    }

    /// The size of a manifest or an index, which may be larger than is allowed. Bytes. Blocking.
    pub(crate) fn document_size(&self, digest: &Digest) -> Result<u64, Error> {
        if let Some(made) = self.documents.get(digest) {
            return Ok(made.len() as u64);
        }
        let path = self.path_of(digest);
        let file = self.open_file(&path)?;
        let file = file.ok_or_else(|| self.lacks(&format!("manifest {digest}")))?;
        let facts = file.metadata();
        let facts = facts.map_err(|error| Error::io("look at", Path::new(&path), error))?;
        Ok(facts.len())
    }

    /// A manifest or an index of at most `allowed` bytes. Blocking. The caller must verify it.
    pub(crate) fn document(&self, digest: &Digest, allowed: u64) -> Result<Vec<u8>, Error> {
        if let Some(made) = self.documents.get(digest) {
            return Ok(made.clone());
        }
        let read = self.read(&self.path_of(digest), allowed)?;
        read.ok_or_else(|| self.lacks(&format!("manifest {digest}")))
    }

    /// Bytes of a blob from `at` on; none at its end. Blocking. The caller must verify them.
    pub(crate) fn read_blob(
        &self,
        digest: &Digest,
        at: u64,
        to: &mut [u8],
    ) -> Result<usize, Error> {
        let path = self.path_of(digest);
        let file = self.open_file(&path)?;
        let file = file.ok_or_else(|| self.lacks(&format!("blob {digest}")))?;
        file.read_at(to, at)
            .map_err(|error| Error::io("read", Path::new(&path), error))
    }

    fn path_of(&self, digest: &Digest) -> String {
        let known = self.files.get(digest).cloned();
        known.unwrap_or_else(|| format!("blobs/sha256/{}", digest.hex()))
    }

    fn lacks(&self, what: &str) -> Error {
        Error::invalid(self.name.clone(), format!("it lacks {what}"))
    }

    /// The regular file `path` of the archive; `None` if there is none.
    fn open_file(&self, path: &str) -> Result<Option<File>, Error> {
        // Without waiting for the writer of a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let opened = openat2(&self.root, path, flags, Mode::empty(), within);
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(
                errno @ (Errno::XDEV
                | Errno::LOOP
                | Errno::NOTDIR
                | Errno::NXIO
                | Errno::NAMETOOLONG),
            ) => {
                let problem = format!("its file {path:?} cannot be opened: {errno}");
                return Err(Error::invalid(self.name.clone(), problem));
            }
            Err(errno) => return Err(Error::io("open", Path::new(path), errno.into())),
        };
        let facts = rustix::fs::fstat(&file)
            .map_err(|errno| Error::io("look at", Path::new(path), errno.into()))?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            let problem = format!("its {path:?} is not a regular file");
            return Err(Error::invalid(self.name.clone(), problem));
        }
        Ok(Some(file.into()))
    }

    /// The bytes of a file, at most `allowed`; `None` if there is none.
    fn read(&self, path: &str, allowed: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut limited = file.take(allowed.saturating_add(1));
        let read = limited.read_to_end(&mut bytes);
        read.map_err(|error| Error::io("read", Path::new(path), error))?;
        if bytes.len() as u64 > allowed {
            return Err(Error::Limit {
                what: format!("{path} of {}", self.name),
                limit: "max_manifest_bytes",
                allowed,
            });
        }
        Ok(Some(bytes))
    }
}

/// What tells an entry from those of other images, for messages: its whole name, or the tag that it has instead.
fn any_name(entry: &Entry) -> String {
    if let Some(name) = full_name(entry) {
        return name.to_string();
    }
    let names = &entry.annotations;
    let name = names.get(FULL_NAME).or_else(|| names.get(REF_NAME));
    name.map_or_else(
        || "one without a name".to_owned(),
        |name| format!("{name:?}"),
    )
}

/// The whole name of an entry, if it has one.
fn full_name(entry: &Entry) -> Option<ImageRef> {
    if let Some(name) = entry.annotations.get(FULL_NAME) {
        return name.parse().ok();
    }
    let name = entry.annotations.get(REF_NAME)?;
    let (host, _) = name.split_once('/')?;
    let is_whole = host == "localhost" || host.contains(['.', ':']);
    name.parse().ok().filter(|_| is_whole)
}
