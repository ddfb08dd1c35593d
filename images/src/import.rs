//! Imports images from an archive: what a pull does, without a registry.
//!
//! Called by: the daemon, for `coracle image import` and for the preload directory ([`crate::preload`]).
//! Invariants: the archive is decompressed and parsed by a jailed unpacker, within the limits of one image; its images
//! pass every check of a pull; images that are imported before another one fails stay.
//! Not here: the formats of archives ([`crate::archive`]), the way of an image into the store ([`crate::pull`]).

use std::fs::File;
use std::io::Seek as _;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::archive::{Archive, Found};
use crate::blobs::blocking;
use crate::draft::Draft;
use crate::error::Error;
use crate::image::Image;
use crate::manifest::PlatformPreference;
use crate::pull::{Names, Origin, Pull};
use crate::reference::{ImageRef, Target};
use crate::store::{Images, Inner};
use crate::unpack::unpack_archive;

/// Running imports; further ones wait. Each needs room on the disk for the archive, for what is in it, and for its images.
static PERMITS: Semaphore = Semaphore::const_new(2);

/// How to import an archive.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// What the archive is called in messages: its path.
    pub name: String,
    /// The name of its only image; `None` imports every image that has a name in the archive.
    pub reference: Option<String>,
    /// Whether the names are pinned, so that the kubelet does not collect the images.
    pub pin: bool,
    /// Which entry of an index.
    pub platform: PlatformPreference,
}

/// An archive that is being received, in a temporary file of the store; deleted when this is dropped.
pub struct ReceivedArchive {
    draft: Draft,
    bytes_left: u64,
    allowed: u64,
}

impl ReceivedArchive {
    /// Takes the next bytes. Errors: more than an image may unpack to; the disk is full or fails.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let left = self.bytes_left.checked_sub(bytes.len() as u64);
        self.bytes_left = left.ok_or_else(|| Error::Limit {
            what: "the archive".to_owned(),
            limit: "max_unpacked_bytes",
            allowed: self.allowed,
        })?;
        self.draft.write(bytes).await
    }
}

impl Images {
    /// Begins to receive an archive. Errors: the disk is full or fails.
    pub async fn receive_archive(&self) -> Result<ReceivedArchive, Error> {
        let draft = self.inner.blobs.draft().await?;
        let allowed = self.inner.config.limits.max_unpacked_bytes;
        Ok(ReceivedArchive {
            draft,
            bytes_left: allowed,
            allowed,
        })
    }

    /// As [`Images::import`], of an archive that was received whole.
    pub async fn import_received(
        &self,
        archive: ReceivedArchive,
        request: &ImportRequest,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let file = archive
            .draft
            .finish("opening an archive", move |temporary| {
                let failed = |error| Error::io("open", temporary.path(), error);
                let mut file = temporary.file()?.try_clone().map_err(failed)?;
                file.rewind().map_err(failed)?;
                // Its room is free again as soon as it is unpacked.
                temporary.remove();
                Ok(file)
            });
        let file = file.await?;
        self.import(file, request).await
    }

    /// Imports the images of `archive`, a tar, plain or compressed with gzip or zstd, that holds an OCI layout or is a
    /// docker-archive. Returns them when they are complete, recorded and listed.
    ///
    /// Errors: it is no such archive, or one of its images cannot be used; the images before that one stay.
    pub async fn import(
        &self,
        archive: File,
        request: &ImportRequest,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let failed = |cause: Error| Error::Import {
            archive: request.name.clone(),
            cause: Box::new(cause),
        };
        self.inner.import(archive, request).await.map_err(failed)
    }
}

impl Inner {
    async fn import(
        self: &Arc<Self>,
        file: File,
        request: &ImportRequest,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let reference: Option<ImageRef> =
            request.reference.as_deref().map(str::parse).transpose()?;
        // The semaphore is never closed, so this cannot fail.
        let _permit = PERMITS.acquire().await.ok();
        let mut archive = self.unpacked(file, request).await?;
        let (own, platform) = (self.clone(), request.platform);
        let (archive, found) = blocking("reading an archive", move || {
            let found = archive.find(reference.as_ref(), platform, &own.config.limits)?;
            for (found, reference) in found.iter().zip(&reference) {
                found.check_digest(archive.name(), reference)?;
            }
            Ok((Arc::new(archive), found))
        })
        .await?;
        let mut images = Vec::with_capacity(found.len());
        for found in found {
            images.push(self.take(&archive, found, request).await?);
        }
        Ok(images)
    }

    /// Unpacks the archive into the store's directory of temporary files.
    async fn unpacked(
        self: &Arc<Self>,
        file: File,
        request: &ImportRequest,
    ) -> Result<Archive, Error> {
        let own = self.clone();
        let draft = blocking("making a directory for an archive", move || {
            own.blobs.layer_draft()
        })
        .await?;
        let path = std::path::PathBuf::from(&request.name);
        let unpacked = unpack_archive(
            &*self.unpackers,
            file,
            &path,
            draft.path(),
            &self.config.limits,
        )
        .await;
        let name = request.name.clone();
        // In any case: removing a half-made directory blocks, too.
        blocking("opening an archive", move || {
            unpacked?;
            Archive::open(name, draft)
        })
        .await
    }

    /// Takes one image of the archive into the store.
    async fn take(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        found: Found,
        request: &ImportRequest,
    ) -> Result<Arc<Image>, Error> {
        let began = Instant::now();
        let names = Names {
            references: found.references,
            has_digest: found.has_digest,
            is_pinned: request.pin,
        };
        let reference = names.first();
        let (origin, target) = (
            Origin::Archive(archive.clone()),
            Target::Digest(found.digest),
        );
        let mut pull = Pull::from(self.clone(), origin, names, target, request.platform);
        let progress = pull.progress();
        let outcome = progress.logged(pull.run()).await;
        if let Err(error) = &outcome {
            pull.clean_up(error).await;
        }
        let image = outcome?;
        let (source, bytes) = pull.transfer();
        tracing::info!(
            reference, digest = %image.id, bytes, seconds = began.elapsed().as_secs_f32(), source, "image imported"
        );
        Ok(image)
    }
}
