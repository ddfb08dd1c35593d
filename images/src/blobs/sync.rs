//! Brings what was written to the disk, and reads what may not be there.
//!
//! Called by: the pull, before it records anything, and the store when it opens. [`super::unsynced`] knows what is not on the
//! disk. Invariant: a blob that is found after a start and that no record names is used only once it was read whole.
//! Not here: writing.

use std::fs;
use std::io::{ErrorKind, Read as _};

use super::{Blobs, sync_directory};
use crate::blocking::blocking;
use crate::error::Error;
use crate::manifest::Blob;
use crate::reference::Digest;
use crate::verify::Verifier;

/// Bytes that are read at a time.
const SLICE: usize = 128 << 10;

impl Blobs {
    /// Whether the blob is stored whole: one that a power failure may have cut is read, and removed if it is not. Errors: the
    /// disk fails; the daemon ends.
    pub(crate) async fn stores(&self, blob: &Blob) -> Result<bool, Error> {
        let (own, blob) = (self.clone(), blob.clone());
        blocking("looking for a blob", move || {
            if !own.has(&blob) {
                return Ok(false);
            }
            if !own.unsynced.has(&blob.digest) || own.is_whole(&blob)? {
                return Ok(true);
            }
            tracing::warn!(digest = %blob.digest, "a blob that a pull had stored before a crash is not whole: it is fetched again");
            own.remove_blob(&blob.digest).map(|()| false)
        })
        .await
    }

    /// Whether the bytes of a blob are right. Blocking.
    fn is_whole(&self, blob: &Blob) -> Result<bool, Error> {
        let path = self.blob(&blob.digest);
        let failed = |error| Error::io("read", &path, error);
        let mut file = match fs::File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed)?,
        };
        let mut verifier = Verifier::new("blob", blob.digest.clone(), blob.size);
        let mut slice = vec![0; SLICE];
        loop {
            match file.read(&mut slice).map_err(failed)? {
                0 => return Ok(verifier.finish().is_ok()),
                count if verifier.update(&slice[..count]).is_err() => return Ok(false),
                _ => {}
            }
        }
    }

    /// These blobs are named by a record, so they were synced: when the store opens, any blob may have been cut.
    pub(crate) fn mark_synced<'a>(&self, recorded: impl Iterator<Item = &'a Digest>) {
        let mut unsynced = self.unsynced.blobs();
        recorded.for_each(|digest| unsynced.remove(digest));
    }

    /// Has these blobs on the disk. Blocking. Errors: the disk fails.
    pub(crate) fn sync_blobs<'a>(
        &self,
        digests: impl Iterator<Item = &'a Digest>,
    ) -> Result<(), Error> {
        let unsynced: Vec<&Digest> = digests.filter(|digest| self.unsynced.has(digest)).collect();
        if unsynced.is_empty() {
            return Ok(());
        }
        for digest in &unsynced {
            let path = self.blob(digest);
            let synced = fs::File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(|error| Error::io("sync", &path, error))?;
        }
        sync_directory(&self.images.join("blobs/sha256"))?;
        let mut held = self.unsynced.blobs();
        unsynced.into_iter().for_each(|digest| held.remove(digest));
        Ok(())
    }

    /// Waits until everything that was written to the store before is on the disk. Errors: the disk fails; the daemon ends.
    pub(crate) async fn sync_store(&self) -> Result<(), Error> {
        let images = self.images.clone();
        let sync = move || {
            let opened =
                fs::File::open(&images).map_err(|error| Error::io("open", &images, error))?;
            let synced = rustix::fs::syncfs(&opened);
            synced.map_err(|errno| Error::io("sync", &images, errno.into()))
        };
        self.unsynced.sync_all(sync).await
    }

    /// Has the names of layers on the disk. Blocking. Errors: the disk fails.
    pub(crate) fn sync_layers(&self) -> Result<(), Error> {
        sync_directory(&self.layers())
    }
}
