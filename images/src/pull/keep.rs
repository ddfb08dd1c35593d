//! What a pull stores only for later exports: the manifest, and with `keep_blobs` the layers as they came.
//!
//! Called by: the pull. Invariant: the image works without what is kept here; a lost file costs the exact export alone.
//! Not here: layers ([`super::layers`] fetches them whole), exports ([`crate::export`]).

use std::collections::BTreeSet;
use std::future::Future;

use super::{Pull, Resolved};
use crate::blobs::Blobs;
use crate::endpoint::Document;
use crate::error::Error;
use crate::manifest::{Blob, Content, OCI_MANIFEST};
use crate::metadata::Record;
use crate::record::Kept;

impl Pull {
    /// What the record of the image will name as kept. An artifact is always kept whole: it has no layers to unpack.
    pub(super) fn kept(&self, resolved: &Resolved) -> Option<Kept> {
        let layers = match &resolved.manifest.content {
            Content::Module(_) | Content::Files(_) => BTreeSet::new(),
            Content::Archives(layers) if self.inner.config.keep_blobs => {
                layers.iter().map(|layer| layer.digest.clone()).collect()
            }
            Content::Archives(_) => return None,
        };
        let manifest = resolved.digest.clone();
        Some(Kept { manifest, layers })
    }

    /// Stores the manifest, if the record keeps it. Errors: the disk is full or fails.
    pub(super) fn keep_manifest(
        &mut self,
        record: &Record,
        document: Option<Document>,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let kept = record.kept.as_ref().map(|kept| kept.manifest.clone());
        if let Some(digest) = &kept {
            self.pins.add(digest);
        }
        let blobs = self.inner.blobs.clone();
        async move {
            match kept.zip(document) {
                Some((digest, document)) => {
                    let size = document.bytes.len() as u64;
                    let media_type = OCI_MANIFEST.to_owned();
                    let blob = Blob {
                        digest,
                        size,
                        media_type,
                    };
                    store(&blobs, &blob, &document.bytes).await
                }
                None => Ok(()),
            }
        }
    }
}

async fn store(blobs: &Blobs, blob: &Blob, bytes: &[u8]) -> Result<(), Error> {
    if blobs.stores(blob).await? {
        return Ok(());
    }
    let mut writer = blobs.writer(blob).await?;
    writer.write(bytes).await?;
    writer.commit(blobs).await
}
