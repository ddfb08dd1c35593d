//! Brings blobs here, a few at a time, and proves that their repository has them.
//!
//! Place in the flow: the pull says what it wants; streams come from [`crate::registry`], files go to [`crate::blobs`].
//! Invariants: a blob counts only when a repository that is asked has sent all of its bytes, now or before (then it must
//! say now that these credentials may read it): what others have sent is never handed on; bytes that are here already are
//! compared and not written again; a blob is attempted a bounded number of times.
//! Not here: which blobs an image needs, what is in them.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::{self, StreamExt as _};

use super::Pull;
use crate::endpoint::{ATTEMPTS, BlobStream};
use crate::error::{Error, Kind as ErrorKind};
use crate::manifest::Blob;
use crate::verify::Verifier;

/// Blobs fetched at the same time by one pull.
const PARALLEL_BLOBS: usize = 3;

/// A blob that a pull wants.
#[derive(Clone)]
pub(super) struct Want {
    blob: Blob,
    /// Its bytes must be in the store afterwards; else only its repository must have proven to have it, because what was
    /// made of it is here.
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

    /// The right to use what is here.
    pub(super) fn proof(blob: &Blob) -> Self {
        Self {
            blob: blob.clone(),
            is_whole: false,
        }
    }
}

impl Pull {
    /// Makes all `wants` true. After a failure no further one is begun, but those that are on their way may arrive: the
    /// next attempt will need them.
    pub(super) async fn fetch(&mut self, wants: Vec<Want>) -> Result<(), Error> {
        for want in &wants {
            self.pins.add(&want.blob.digest);
        }
        let (this, has_failed) = (&*self, &AtomicBool::new(false));
        let fetch = |want: Want| async move {
            if has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let fetched = this.fetch_one(&want).await;
            has_failed.fetch_or(fetched.is_err(), Ordering::Relaxed);
            fetched
        };
        let fetched: Vec<_> = stream::iter(wants)
            .map(fetch)
            .buffer_unordered(PARALLEL_BLOBS)
            .collect()
            .await;
        fetched.into_iter().collect()
    }

    /// Makes one want true. A host that breaks off or sends something else is left for the next one; the last is asked
    /// again, a few times.
    async fn fetch_one(&self, want: &Want) -> Result<(), Error> {
        let blob = &want.blob;
        let is_here = !want.is_whole || self.inner.blobs.has(blob);
        let sources = self.inner.sources(&blob.digest);
        if is_here && self.registry.may_read(blob, &sources).await {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            let fetched = match self.registry.blob(blob).await {
                Ok(mut bytes) => match self.take(want, &mut bytes).await {
                    Err(error) if error.is_of_source() && bytes.give_up_host() => {
                        tracing::debug!(digest = %blob.digest, %error, "fetching a blob elsewhere");
                        continue;
                    }
                    taken => taken,
                },
                Err(error) => Err(error),
            };
            match fetched {
                Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                    tracing::debug!(digest = %blob.digest, attempt, %error, "fetching a blob again");
                    attempt += 1;
                }
                // A token may have expired during a long pull: once more with a new one.
                Err(error) if attempt == 1 && error.kind() == ErrorKind::Unauthorized => {
                    self.registry.drop_tokens().await;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// Reads a blob to its end, keeps it if it is not here, and remembers who has sent it.
    async fn take(&self, want: &Want, bytes: &mut BlobStream) -> Result<(), Error> {
        let taken = if !want.is_whole || self.inner.blobs.has(&want.blob) {
            compare(&want.blob, bytes).await
        } else {
            self.keep(&want.blob, bytes).await
        };
        taken.map_err(|error| bytes.withhold(error))?;
        self.inner.add_source(&want.blob.digest, bytes.source());
        Ok(())
    }

    async fn keep(&self, blob: &Blob, bytes: &mut BlobStream) -> Result<(), Error> {
        let mut writer = self.inner.blobs.writer(blob).await?;
        while let Some(chunk) = bytes.next().await? {
            writer.write(&chunk).await?;
        }
        writer.commit(&self.inner.blobs).await
    }
}

/// Checks bytes that are here already and need not be written.
async fn compare(blob: &Blob, bytes: &mut BlobStream) -> Result<(), Error> {
    let what = format!("blob {}", blob.digest);
    let mut verifier = Verifier::new(what, blob.digest.clone(), blob.size);
    while let Some(chunk) = bytes.next().await? {
        verifier.update(&chunk)?;
    }
    verifier.finish()
}
