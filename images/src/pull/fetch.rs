//! Fetches blobs, a few at a time, and verifies access to blobs that are stored already.
//!
//! Called by: the pull. Streams come from [`crate::registry`] or an archive, files go to [`crate::blobs`].
//! Invariants: a blob is used only if a repository of this pull has sent all of its bytes, now or before (then it must
//! confirm now that these credentials may read it), or if the archive of this import holds it: content from other
//! repositories is never exposed; stored bytes are compared and not written again; a blob that breaks off is resumed only
//! at the repository that has sent its beginning; the attempts for a blob are bounded.
//! Not here: which blobs an image needs, their content.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::{self, StreamExt as _};
use tracing::{Instrument as _, info_span};

use super::{Origin, Pull};
use crate::archive::Archive;
use crate::blobs::blocking;
use crate::draft::{BlobWriter, CHUNK_BYTES};
use crate::endpoint::{ATTEMPTS, BACKOFF, BlobStream, Resume};
use crate::error::{Error, Kind as ErrorKind};
use crate::manifest::Blob;
use crate::reference::Digest;
use crate::registry::Registry;
use crate::transfers::Host;
use crate::verify::Verifier;

/// Blobs fetched at the same time by one pull.
const PARALLEL_BLOBS: usize = 3;

/// After as many new bytes of a blob its attempts are counted anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What has arrived of a blob whose stream broke off.
struct Partial {
    /// The repository that has sent all of it.
    source: String,
    writer: BlobWriter,
}

impl Partial {
    fn resume(&self) -> Resume<'_> {
        Resume {
            source: &self.source,
            first: self.writer.written(),
        }
    }
}

/// A blob that a pull needs.
#[derive(Clone)]
pub(super) struct Want {
    blob: Blob,
    /// True if its bytes must be in the store; false if only access must be verified, because its layer is unpacked.
    is_whole: bool,
}

impl Want {
    /// The blob in the store.
    pub(super) fn whole(blob: &Blob) -> Self {
        Self {
            blob: blob.clone(),
            is_whole: true,
        }
    }

    /// Access to the blob only.
    pub(super) fn proof(blob: &Blob) -> Self {
        Self {
            blob: blob.clone(),
            is_whole: false,
        }
    }
}

impl Pull {
    /// Fetches all `wants`.
    pub(super) async fn fetch(&mut self, wants: Vec<Want>) -> Result<(), Error> {
        self.expect(&wants);
        self.fetch_expected(wants, |_| ()).await
    }

    /// Pins what will be fetched, and counts it.
    pub(super) fn expect(&mut self, wants: &[Want]) {
        for want in wants {
            self.pins.add(&want.blob.digest);
            self.progress.expect_bytes(want.blob.size);
        }
    }

    /// Fetches all `wants`, and says of each when it is here. After a failure no further fetch starts, but running ones
    /// complete: the next attempt will need them.
    pub(super) async fn fetch_expected(
        &self,
        wants: Vec<Want>,
        is_here: impl Fn(Digest) + Sync,
    ) -> Result<(), Error> {
        let (is_here, has_failed) = (&is_here, &AtomicBool::new(false));
        let fetch = |want: Want| async move {
            if has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let fetched = self.fetch_one(&want).await;
            match &fetched {
                Ok(()) => is_here(want.blob.digest),
                Err(_) => has_failed.store(true, Ordering::Relaxed),
            }
            fetched
        };
        let fetched: Vec<_> = stream::iter(wants)
            .map(fetch)
            .buffer_unordered(PARALLEL_BLOBS)
            .collect()
            .await;
        fetched.into_iter().collect()
    }

    /// Fetches one blob. After a broken or wrong stream the next host is tried; the last is tried a few times.
    async fn fetch_one(&self, want: &Want) -> Result<(), Error> {
        let blob = &want.blob;
        let is_here = !want.is_whole || self.inner.blobs.stores(blob).await?;
        let registry = match &self.origin {
            Origin::Registry(registry) => registry,
            Origin::Archive(archive) => return self.copy(archive, blob, is_here).await,
        };
        let sources = self.inner.sources(&blob.digest);
        if is_here && registry.may_read(blob, &sources).await {
            self.progress.need_not(blob.size);
            return Ok(());
        }
        let span = info_span!(
            target: "otel",
            "image.fetch",
            oci.digest = %blob.digest,
            oci.reference = self.names.first(),
            bytes = blob.size
        );
        self.fetch_from(registry, want).instrument(span).await
    }

    async fn fetch_from(&self, registry: &Registry, want: &Want) -> Result<(), Error> {
        let blob = &want.blob;
        let (mut attempt, mut partial, mut most) = (1, None::<Partial>, 0);
        let mut has_new_token = false;
        loop {
            let is_resumed = partial.is_some();
            let Some(fetched) = self.fetch_once(registry, want, &mut partial).await else {
                continue;
            };
            // Whoever makes progress may break off as often as it likes: the size of a blob is bounded.
            let received = partial
                .as_ref()
                .map_or(0, |partial| partial.writer.written());
            if received >= most + PROGRESS_BYTES {
                (attempt, most, has_new_token) = (1, received, false);
            }
            match fetched {
                Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                    tracing::debug!(digest = %blob.digest, attempt, received, %error, "fetching a blob again");
                    attempt += 1;
                    if attempt == ATTEMPTS {
                        // It may be the resuming that fails.
                        partial = None;
                    }
                    tokio::time::sleep(error.pause(BACKOFF * attempt)).await;
                }
                // The parts do not fit together: from the beginning.
                Err(error)
                    if is_resumed && error.kind() == ErrorKind::Corrupt && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                // A token may have expired during a long pull: once more with a new one.
                Err(error) if !has_new_token && error.kind() == ErrorKind::Unauthorized => {
                    registry.drop_tokens().await;
                    has_new_token = true;
                }
                done => return done,
            }
        }
    }

    /// Fetches a blob from the host whose turn it is. `None` if that one has failed and another host follows.
    async fn fetch_once(
        &self,
        registry: &Registry,
        want: &Want,
        partial: &mut Option<Partial>,
    ) -> Option<Result<(), Error>> {
        let resume = partial.as_ref().map(Partial::resume);
        let mut bytes = match registry.blob(&want.blob, resume).await {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        match self.take(want, &mut bytes, partial).await {
            Err(error) if error.is_of_source() && bytes.give_up_host() => {
                tracing::debug!(digest = %want.blob.digest, %error, "fetching a blob from the next host");
                None
            }
            taken => Some(taken),
        }
    }

    /// Reads a blob to its end, stores it if it is not stored, and records its source.
    async fn take(
        &self,
        want: &Want,
        bytes: &mut BlobStream,
        partial: &mut Option<Partial>,
    ) -> Result<(), Error> {
        let taken = if !want.is_whole || self.inner.blobs.stores(&want.blob).await? {
            self.compare(&want.blob, bytes).await
        } else {
            self.keep(&want.blob, bytes, partial).await
        };
        taken.map_err(|error| bytes.withhold(error))?;
        self.inner.add_source(&want.blob.digest, bytes.source());
        Ok(())
    }

    /// Writes a stream to the store. What has arrived before it breaks off is kept as `partial`.
    async fn keep(
        &self,
        blob: &Blob,
        bytes: &mut BlobStream,
        partial: &mut Option<Partial>,
    ) -> Result<(), Error> {
        let goes_on = |partial: &Partial| {
            // Only whoever has sent all bytes has proven that it has the blob.
            partial.source == bytes.source() && partial.writer.written() == bytes.first()
        };
        let mut writer = match partial.take().filter(goes_on) {
            Some(partial) => partial.writer,
            None if bytes.first() > 0 => return Err(bytes.out_of_place()),
            None => self.inner.blobs.writer(blob).await?,
        };
        loop {
            match bytes.next().await {
                Ok(Some(chunk)) => {
                    self.count(bytes.host_kind(), chunk.len());
                    writer.write(&chunk).await?;
                }
                Ok(None) => return writer.commit(&self.inner.blobs).await,
                Err(error) => {
                    let source = bytes.source().to_owned();
                    *partial = Some(Partial { source, writer });
                    return Err(error);
                }
            }
        }
    }

    /// Verifies a stream without writing it.
    async fn compare(&self, blob: &Blob, bytes: &mut BlobStream) -> Result<(), Error> {
        let what = format!("blob {}", blob.digest);
        let mut verifier = Verifier::new(what, blob.digest.clone(), blob.size);
        while let Some(chunk) = bytes.next().await? {
            self.count(bytes.host_kind(), chunk.len());
            verifier.update(&chunk)?;
        }
        verifier.finish()
    }

    /// Copies a blob of an archive into the store. One that is there already is only verified: an archive must hold what
    /// it names, or it would get content of others by its digest.
    async fn copy(&self, archive: &Arc<Archive>, blob: &Blob, is_here: bool) -> Result<(), Error> {
        let what = format!("blob {}", blob.digest);
        let mut verifier = Verifier::new(what, blob.digest.clone(), blob.size);
        let mut writer = match is_here {
            true => None,
            false => Some(self.inner.blobs.writer(blob).await?),
        };
        let (mut buffer, mut at) = (Vec::new(), 0);
        loop {
            let (archive, digest) = (archive.clone(), blob.digest.clone());
            buffer = blocking("reading a blob of an archive", move || {
                buffer.resize(CHUNK_BYTES, 0);
                let count = archive.read_blob(&digest, at, &mut buffer)?;
                buffer.truncate(count);
                Ok(buffer)
            })
            .await?;
            if buffer.is_empty() {
                break;
            }
            at += buffer.len() as u64;
            self.count(Host::Own, buffer.len());
            match &mut writer {
                Some(writer) => writer.write(&buffer).await?,
                None => verifier.update(&buffer)?,
            }
        }
        match writer {
            Some(writer) => writer.commit(&self.inner.blobs).await,
            None => verifier.finish(),
        }
    }

    fn count(&self, host: Host, bytes: usize) {
        let transfers = &self.inner.transfers;
        transfers.count(&self.progress, host, bytes as u64);
    }
}
