//! The store's files: blobs by digest, unpacked layers by chain id, temporary files, and how much they occupy.
//!
//! Place in the flow: the pull writes here, the store deletes here.
//! Invariants: a name under `blobs/` or `layers/` is complete, because it appears by a rename of something
//! that was verified and synced; whatever is in `tmp/` when the daemon starts is rubbish and goes
//! to `trash/`, which is emptied in the background; all directories
//! above content are 0700, so that no setuid file of an image can be reached by a user of the node.
//! Not here: media types, names of images, what is still wanted.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_tree::Trash;
use tokio::io::AsyncWriteExt as _;

use crate::error::Error;
use crate::failpoint;
use crate::manifest::Blob;
use crate::reference::Digest;
use crate::unpack::Usage;
use crate::verify::Verifier;

/// The directories of one store.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    images: PathBuf,
    used: Arc<Used>,
    trash: Trash,
}

/// Running totals, so that nobody ever walks the store to know its size.
#[derive(Debug, Default)]
struct Used {
    bytes: AtomicU64,
    inodes: AtomicU64,
    temporary: AtomicU64,
}

impl Blobs {
    /// Makes the directories under `root` and empties `tmp/`. Blocking.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let images = root.join("images");
        let trash = images.join("trash");
        let blobs = Self {
            trash: Trash::open(&trash).map_err(|error| Error::io("open", &trash, error))?,
            images,
            used: Arc::default(),
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
        // What is synced into them later must be reachable after a power loss.
        for directory in [root, &blobs.images, &blobs.images.join("blobs")] {
            sync_directory(directory)?;
        }
        for digest in blobs.stored_blobs()? {
            blobs.grow(blobs.blob_usage(&digest));
        }
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

    /// Where a blob is or would be.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.images.join("blobs/sha256").join(digest.hex())
    }

    /// Where an unpacked layer is or would be.
    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(chain.hex())
    }

    /// The directory above all unpacked layers.
    pub(crate) fn layers(&self) -> PathBuf {
        self.images.join("layers")
    }

    /// True if the blob is here, with the size its descriptor says.
    pub(crate) fn has(&self, blob: &Blob) -> bool {
        fs::symlink_metadata(self.blob(&blob.digest))
            .is_ok_and(|found| found.is_file() && found.len() == blob.size)
    }

    /// Bytes and inodes in use now.
    pub(crate) fn used(&self) -> (u64, u64) {
        (
            self.used.bytes.load(Ordering::Relaxed),
            self.used.inodes.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn grow(&self, by: Usage) {
        self.used.bytes.fetch_add(by.bytes, Ordering::Relaxed);
        self.used.inodes.fetch_add(by.inodes, Ordering::Relaxed);
    }

    pub(crate) fn shrink(&self, by: Usage) {
        let less = |now: u64, by: u64| Some(now.saturating_sub(by));
        // Both closures always answer `Some`, so neither update can fail.
        let _ = self
            .used
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                less(now, by.bytes)
            });
        let _ = self
            .used
            .inodes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                less(now, by.inodes)
            });
    }

    /// Starts a blob in `tmp/`.
    pub(crate) async fn writer(&self, blob: &Blob) -> Result<BlobWriter, Error> {
        let temporary = self.temporary();
        let file = tokio::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary.path)
            .await
            .map_err(|error| Error::io("create", &temporary.path, error))?;
        let what = format!("blob {}", blob.digest);
        let verifier = Verifier::new(what, blob.digest.clone(), blob.size);
        Ok(BlobWriter {
            file,
            temporary,
            verifier,
            digest: blob.digest.clone(),
        })
    }

    /// Makes an empty directory in `tmp/`, to be filled and given to [`Blobs::commit_layer`]. Blocking.
    pub(crate) fn layer_draft(&self) -> Result<Temporary, Error> {
        let draft = self.temporary();
        // Overlayfs shows the mode of the lowest root to guests: it must let every user in.
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

    /// Makes a finished draft the layer `chain`, unless somebody was faster. Blocking. True if it was us.
    pub(crate) fn commit_layer(
        &self,
        draft: Temporary,
        chain: &Digest,
        usage: Usage,
    ) -> Result<bool, Error> {
        let opened =
            fs::File::open(&draft.path).map_err(|error| Error::io("open", &draft.path, error))?;
        rustix::fs::syncfs(&opened)
            .map_err(|errno| Error::io("sync", &draft.path, errno.into()))?;
        let layer = self.layer(chain);
        failpoint::pass("pull.unpack")?;
        match fs::rename(&draft.path, &layer) {
            Ok(()) => {
                self.grow(usage);
                sync_directory(&self.layers())?;
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                // Whoever was faster may not have come to it yet.
                sync_directory(&self.layers())?;
                Ok(false)
            }
            Err(error) => Err(Error::io("rename to", &layer, error)),
        }
    }

    /// Deletes a blob. Absent is fine. Blocking.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.blob(digest);
        let usage = self.blob_usage(digest);
        match fs::remove_file(&path) {
            Ok(()) => self.shrink(usage),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &path, error)),
        }
        Ok(())
    }

    /// Takes a layer out of sight at once; it is deleted when the answer is dropped. Absent is fine. Blocking.
    pub(crate) fn retire_layer(
        &self,
        chain: &Digest,
        usage: Usage,
    ) -> Result<Option<Temporary>, Error> {
        let (path, grave) = (self.layer(chain), self.temporary());
        match fs::rename(&path, &grave.path) {
            Ok(()) => {
                self.shrink(usage);
                Ok(Some(grave))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }

    /// The blobs that are here. Blocking.
    pub(crate) fn stored_blobs(&self) -> Result<Vec<Digest>, Error> {
        digests_in(&self.images.join("blobs/sha256"))
    }

    /// The layers that are here. Blocking.
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
            trash: self.trash.clone(),
        }
    }
}

/// A name in `tmp/`; what is there goes with the value: small things at once, large trees in the background.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    trash: Trash,
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = self.trash.remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "temporary file stays until the next start");
        }
    }
}

/// A blob on its way in.
pub(crate) struct BlobWriter {
    file: tokio::fs::File,
    temporary: Temporary,
    verifier: Verifier,
    digest: Digest,
}

impl BlobWriter {
    /// Takes the next bytes. Errors: too many, disk full, disk broken.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.verifier.update(bytes)?;
        self.file
            .write_all(bytes)
            .await
            .map_err(|error| Error::io("write", &self.temporary.path, error))
    }

    /// Verifies, syncs and gives the blob its name. Errors: not the promised bytes, disk full, disk broken.
    pub(crate) async fn commit(mut self, blobs: &Blobs) -> Result<(), Error> {
        self.file
            .flush()
            .await
            .map_err(|error| Error::io("write", &self.temporary.path, error))?;
        self.verifier.finish()?;
        let (blobs, digest, temporary, file) = (
            blobs.clone(),
            self.digest,
            self.temporary,
            self.file.into_std().await,
        );
        let commit = move || {
            file.sync_all()
                .map_err(|error| Error::io("sync", &temporary.path, error))?;
            let path = blobs.blob(&digest);
            let is_new = !path.exists();
            failpoint::pass("pull.blob")?;
            fs::rename(&temporary.path, &path)
                .map_err(|error| Error::io("rename to", &path, error))?;
            if is_new {
                blobs.grow(blobs.blob_usage(&digest));
            }
            sync_directory(&blobs.images.join("blobs/sha256"))
        };
        blocking("storing a blob", commit).await
    }
}

/// Runs blocking work off the async threads. Errors: its own; [`Error::Cancelled`] if the runtime is going away.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) if join.is_cancelled() => Err(Error::Cancelled { doing }),
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    let synced = fs::File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io("sync", path, error))
}

/// The entries of a directory that are digests; anything else is not ours and is left alone.
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
