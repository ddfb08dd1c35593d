//! The store's files: blobs by digest, unpacked layers by chain id, temporary files, and how much they occupy.
//!
//! Called by: the pull, which writes, and the store, which deletes.
//! Here is what waits for the disk, on threads of [`crate::blocking`]; how blobs get here is in [`crate::draft`].
//! Invariants: every file under `blobs/` and directory under `layers/` is complete, because it was verified before it was
//! renamed there, and a layer synced, too; a blob is synced before a record names it, and one that no record names is read
//! before it is used after a start ([`sync`]); what is in `tmp/` at the daemon's start is moved to `trash/`, which is
//! emptied in the background; all directories above content are 0700, so that no user of the node can reach a setuid file of an
//! image. Not here: media types, names of images, which content is unused.

mod sync;
mod unsynced;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use crate::blocking::blocking;
use crate::blocking::later;
use crate::error::Error;
use crate::failpoint;
use crate::manifest::Blob;
use crate::reference::Digest;
use crate::unpack::Usage;
use coracle_tree::Trash;
use unsynced::Unsynced;

/// The directories of one store.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    images: PathBuf,
    used: Arc<Used>,
    unsynced: Arc<Unsynced>,
    trash: Trash,
}

/// Running totals, so that the store is never walked for its size.
#[derive(Debug, Default)]
struct Used {
    /// Of blobs and of layers.
    bytes: [AtomicU64; 2],
    inodes: AtomicU64,
    temporary: AtomicU64,
}

/// What bytes are of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Blobs,
    Layers,
}

impl Blobs {
    /// Creates the directories under `root` and empties `tmp/`. Blocking.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let images = root.join("images");
        let trash = images.join("trash");
        let blobs = Self {
            trash: Trash::open(&trash).map_err(|error| Error::io("open", &trash, error))?,
            images,
            used: Arc::default(),
            unsynced: Arc::default(),
        };
        let temporary = blobs.images.join("tmp");
        let emptied = blobs.trash.remove_later(&temporary);
        emptied.map_err(|error| Error::io("empty", &temporary, error))?;
        for directory in [
            blobs.images.clone(),
            blobs.images.join("blobs/sha256"),
            blobs.layers(),
            temporary,
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| Error::io("create directory", &directory, error))?;
        }
        // Files that are synced into them later must be reachable after a power loss.
        for directory in [root, &blobs.images, &blobs.images.join("blobs")] {
            sync_directory(directory)?;
        }
        let mut unsynced = blobs.unsynced.blobs();
        for digest in blobs.stored_blobs()? {
            blobs.grow(Part::Blobs, blobs.blob_usage(&digest));
            unsynced.add(digest);
        }
        drop(unsynced);
        Ok(blobs)
    }

    /// The directory of the whole store.
    pub(crate) fn directory(&self) -> &Path {
        &self.images
    }

    /// The metadata database.
    pub(crate) fn database(&self) -> PathBuf {
        self.images.join("metadata.redb")
    }

    /// The path of a blob, stored or not.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.images.join("blobs/sha256").join(digest.hex())
    }

    /// The path of an unpacked layer, stored or not.
    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(chain.hex())
    }

    /// The directory above all unpacked layers.
    pub(crate) fn layers(&self) -> PathBuf {
        self.images.join("layers")
    }

    /// True if the blob is stored, with the size of its descriptor. Blocking.
    pub(crate) fn has(&self, blob: &Blob) -> bool {
        fs::symlink_metadata(self.blob(&blob.digest))
            .is_ok_and(|found| found.is_file() && found.len() == blob.size)
    }

    /// Bytes of blobs, bytes of layers, and inodes in use now.
    pub(crate) fn used(&self) -> ([u64; 2], u64) {
        let bytes = self.used.bytes.each_ref();
        (
            bytes.map(|bytes| bytes.load(Ordering::Relaxed)),
            self.used.inodes.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn grow(&self, part: Part, by: Usage) {
        self.used.bytes[part as usize].fetch_add(by.bytes, Ordering::Relaxed);
        self.used.inodes.fetch_add(by.inodes, Ordering::Relaxed);
    }

    fn shrink(&self, part: Part, by: Usage) {
        let less = |now: u64, by: u64| Some(now.saturating_sub(by));
        // Both closures always answer `Some`, so neither update can fail.
        let _ = self.used.bytes[part as usize].fetch_update(
            Ordering::Relaxed,
            Ordering::Relaxed,
            |now| less(now, by.bytes),
        );
        let _ = self
            .used
            .inodes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                less(now, by.inodes)
            });
    }

    /// Makes an empty file in `tmp/`, to be written and read. Blocking.
    pub(crate) fn new_file(&self) -> Result<Temporary, Error> {
        let mut temporary = self.temporary();
        let made = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary.path);
        let file = made.map_err(|error| Error::io("create", &temporary.path, error))?;
        temporary.file = Some(file);
        Ok(temporary)
    }

    /// Makes an empty directory in `tmp/`, to be filled and given to [`Blobs::commit_layer`]. Blocking.
    pub(crate) fn layer_draft(&self) -> Result<Temporary, Error> {
        let draft = self.temporary();
        // Overlayfs shows the mode of the lowest root to containers: every user must be able to enter it.
        let made = DirBuilder::new().create(&draft.path);
        made.and_then(|()| {
            fs::set_permissions(
                &draft.path,
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )
        })
        .map_err(|error| Error::io("create directory", &draft.path, error))?;
        Ok(draft)
    }

    /// Renames a blob that is written and verified to its digest, unless it is there. Blocking. It is not synced yet.
    pub(crate) fn commit_blob(&self, temporary: Temporary, digest: &Digest) -> Result<(), Error> {
        let path = self.blob(digest);
        let written = temporary.file()?.metadata();
        let size = written.map_err(|error| Error::io("read", &temporary.path, error))?;
        failpoint::pass("pull.blob")?;
        let mut unsynced = self.unsynced.blobs();
        let found = fs::symlink_metadata(&path).ok();
        let is_same = |found: &fs::Metadata| found.is_file() && found.len() == size.len();
        if found.as_ref().is_some_and(is_same) {
            // A faster pull has stored it, and may have recorded it: what is synced stays.
            return Ok(());
        }
        fs::rename(&temporary.path, &path).map_err(|error| Error::io("rename to", &path, error))?;
        unsynced.add(digest.clone());
        drop(unsynced);
        temporary.forget();
        if found.is_none() {
            self.grow(Part::Blobs, self.blob_usage(digest));
        }
        Ok(())
    }

    /// Renames a finished draft, which is synced, to the layer `chain`; [`Blobs::sync_layers`] has it stay so. Blocking. False if
    /// another pull has stored it meanwhile.
    pub(crate) fn commit_layer(
        &self,
        draft: Temporary,
        chain: &Digest,
        usage: Usage,
    ) -> Result<bool, Error> {
        let layer = self.layer(chain);
        failpoint::pass("pull.unpack")?;
        match fs::rename(&draft.path, &layer) {
            Ok(()) => {
                draft.forget();
                self.grow(Part::Layers, usage);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(Error::io("rename to", &layer, error)),
        }
    }

    /// Deletes a blob, if it exists. Blocking.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.blob(digest);
        let usage = self.blob_usage(digest);
        let mut unsynced = self.unsynced.blobs();
        unsynced.remove(digest);
        match fs::remove_file(&path) {
            Ok(()) => self.shrink(Part::Blobs, usage),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &path, error)),
        }
        Ok(())
    }

    /// Removes a layer from `layers/`, if it exists; it is deleted with the returned value. Blocking.
    pub(crate) fn retire_layer(
        &self,
        chain: &Digest,
        usage: Usage,
    ) -> Result<Option<Temporary>, Error> {
        let (path, grave) = (self.layer(chain), self.temporary());
        match fs::rename(&path, &grave.path) {
            Ok(()) => {
                self.shrink(Part::Layers, usage);
                Ok(Some(grave))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }

    /// All stored blobs. Blocking.
    pub(crate) fn stored_blobs(&self) -> Result<Vec<Digest>, Error> {
        digests_in(&self.images.join("blobs/sha256"))
    }

    /// All stored layers. Blocking.
    pub(crate) fn stored_layers(&self) -> Result<Vec<Digest>, Error> {
        digests_in(&self.layers())
    }

    fn blob_usage(&self, digest: &Digest) -> Usage {
        let bytes = fs::symlink_metadata(self.blob(digest)).map_or(0, |found| found.len());
        Usage { bytes, inodes: 1 }
    }

    fn temporary(&self) -> Temporary {
        let number = self.used.temporary.fetch_add(1, Ordering::Relaxed);
        Temporary {
            path: self.images.join("tmp").join(number.to_string()),
            file: None,
            trash: self.trash.clone(),
        }
    }
}

/// A path in `tmp/`. When this is dropped, a thread that may wait deletes what has it: small trees at once, large ones in the
/// background.
#[derive(Debug)]
pub(crate) struct Temporary {
    /// Empty when nothing has it any more.
    path: PathBuf,
    /// Open, if it is a file: closed before it is removed.
    file: Option<fs::File>,
    trash: Trash,
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file. Errors: it is none.
    pub(crate) fn file(&self) -> Result<&fs::File, Error> {
        let none = || Error::io("write", &self.path, io::ErrorKind::IsADirectory.into());
        self.file.as_ref().ok_or_else(none)
    }

    /// What had the path has another one: nothing is left to remove. Blocking.
    fn forget(mut self) {
        self.file = None;
        self.path.clear();
    }

    /// Removes it at once. Blocking.
    pub(crate) fn remove(mut self) {
        remove(
            &std::mem::take(&mut self.path),
            self.file.take(),
            &self.trash,
        );
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let (path, file) = (std::mem::take(&mut self.path), self.file.take());
        if path.as_os_str().is_empty() {
            return;
        }
        let trash = self.trash.clone();
        later("removing a temporary file", move || {
            remove(&path, file, &trash)
        });
    }
}

/// Closes a file and removes it, or a tree. Blocking.
fn remove(path: &Path, file: Option<fs::File>, trash: &Trash) {
    drop(file);
    if let Err(error) = trash.remove(path) {
        tracing::warn!(path = %path.display(), %error, "temporary file stays until the next start");
    }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    let synced = fs::File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io("sync", path, error))
}

/// The entries of a directory that are digests; others are ignored.
fn digests_in(directory: &Path) -> Result<Vec<Digest>, Error> {
    let failed = |error| Error::io("list", directory, error);
    let mut digests = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(digest) = name
            .to_str()
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
        {
            digests.push(digest);
        }
    }
    Ok(digests)
}
