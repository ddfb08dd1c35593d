//! Writes a blob, or an archive that is received, to a temporary file of the store.
//!
//! Called by: the pull and the import, on async threads. Calls: [`crate::blobs`] for the file, [`crate::blocking`] for
//! threads. Invariants: an async thread never waits for the disk, however long that takes to answer; bytes are written in whole
//! chunks, one at a time, while the next one fills, so that a draft holds two of them; a draft that is dropped leaves no file.
//! Not here: where bytes come from, which blobs there are.

use std::io::Write as _;

use tokio::task::JoinHandle;

use crate::blobs::{Blobs, Temporary, blocking};
use crate::error::Error;
use crate::manifest::Blob;
use crate::reference::Digest;
use crate::space::look_for_room;
use crate::verify::Verifier;

/// Bytes that are written at a time.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// A temporary file that grows.
pub(crate) struct Draft {
    at: Place,
    /// Not written yet.
    chunk: Vec<u8>,
}

/// Where the file is.
enum Place {
    Here(Temporary),
    /// With a thread that writes a chunk, whose buffer comes back empty.
    Written(Writing),
    /// It could not be written.
    Gone,
}

/// A chunk that is being written. One whose turn has not come is given up when this is dropped.
struct Writing(JoinHandle<Result<(Temporary, Vec<u8>), Error>>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Draft {
    fn new(temporary: Temporary) -> Self {
        Self {
            at: Place::Here(temporary),
            chunk: Vec::new(),
        }
    }

    /// Takes the next bytes. Errors: disk full, disk broken; it is of no use any more then.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.chunk.extend_from_slice(now);
            bytes = rest;
            if self.chunk.len() >= CHUNK_BYTES {
                self.write_chunk().await?;
            }
        }
        Ok(())
    }

    /// Begins to write the chunk, after the one before it.
    async fn write_chunk(&mut self) -> Result<(), Error> {
        let (temporary, empty) = self.settled().await?;
        let chunk = std::mem::replace(&mut self.chunk, empty);
        let write = blocking("writing a blob", move || write(temporary, chunk));
        self.at = Place::Written(Writing(tokio::spawn(write)));
        Ok(())
    }

    /// Waits for the chunk that is being written. Returns the file, and an empty buffer.
    async fn settled(&mut self) -> Result<(Temporary, Vec<u8>), Error> {
        let cancelled = || Error::Cancelled {
            doing: "writing a blob",
        };
        let written = match &mut self.at {
            Place::Written(Writing(task)) => Some(task.await),
            Place::Here(_) | Place::Gone => None,
        };
        let place = std::mem::replace(&mut self.at, Place::Gone);
        match (written, place) {
            (Some(Ok(written)), _) => written,
            (Some(Err(join)), _) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            (None, Place::Here(temporary)) => Ok((temporary, Vec::new())),
            (Some(Err(_)) | None, _) => Err(cancelled()),
        }
    }

    /// Does `work` with the file once all of it is written, on a thread that may wait. Errors: as of [`Draft::write`], or its
    /// own.
    pub(crate) async fn finish<T: Send + 'static>(
        mut self,
        doing: &'static str,
        work: impl FnOnce(Temporary) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (temporary, _) = self.settled().await?;
        let chunk = std::mem::take(&mut self.chunk);
        blocking(doing, move || work(write(temporary, chunk)?.0)).await
    }
}

/// Writes a chunk. Returns its buffer, empty. Blocking.
fn write(temporary: Temporary, mut chunk: Vec<u8>) -> Result<(Temporary, Vec<u8>), Error> {
    let written = temporary.file()?.write_all(&chunk);
    written.map_err(|error| Error::io("write", temporary.path(), error))?;
    chunk.clear();
    Ok((temporary, chunk))
}

impl Blobs {
    /// Starts a blob in `tmp/`. Errors: the disk has no room for all of it; disk broken.
    pub(crate) async fn writer(&self, blob: &Blob) -> Result<BlobWriter, Error> {
        let (own, size) = (self.clone(), blob.size);
        let temporary = blocking("making a file for a blob", move || {
            look_for_room(own.directory(), size)?;
            own.new_file()
        })
        .await?;
        let what = format!("blob {}", blob.digest);
        Ok(BlobWriter {
            draft: Draft::new(temporary),
            verifier: Verifier::new(what, blob.digest.clone(), blob.size),
            digest: blob.digest.clone(),
        })
    }

    /// Makes an empty file in `tmp/`. Errors: the disk's.
    pub(crate) async fn draft(&self) -> Result<Draft, Error> {
        let own = self.clone();
        let temporary = blocking("making a temporary file", move || own.new_file()).await?;
        Ok(Draft::new(temporary))
    }
}

/// Writes one blob.
pub(crate) struct BlobWriter {
    draft: Draft,
    verifier: Verifier,
    digest: Digest,
}

impl BlobWriter {
    /// Writes the next bytes. Errors: too many bytes, disk full, disk broken.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.verifier.update(bytes)?;
        self.draft.write(bytes).await
    }

    /// How many bytes were written.
    pub(crate) fn written(&self) -> u64 {
        self.verifier.seen()
    }

    /// Verifies and renames the blob. Errors: wrong digest or size, disk full, disk broken.
    pub(crate) async fn commit(self, blobs: &Blobs) -> Result<(), Error> {
        self.verifier.finish()?;
        let (blobs, digest) = (blobs.clone(), self.digest);
        let commit = move |temporary| blobs.commit_blob(temporary, &digest);
        self.draft.finish("storing a blob", commit).await
    }
}
