//! The layers of a pull: which are missing, and how they are unpacked and stored.
//!
//! Called by: the pull, when the blobs of the missing layers are in the store. [`crate::unpack`] runs the unpackers.
//! Invariants: a layer is stored only after its diff id was verified; what one blob's unpacker has written is never taken
//! for another's.
//! Not here: fetching blobs, recording the image.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Instrument as _, info_span};

use super::Pull;
use super::fetch::Want;
use crate::blobs::{Part, blocking};
use crate::error::Error;
use crate::manifest::{Blob, Content};
use crate::metadata::LayerRecord;
use crate::reference::Digest;
use crate::store::Inner;
use crate::unpack::{Budget, Source, unpack};

impl Pull {
    /// The layers that have to be unpacked: those that are not here, or came from another blob.
    pub(super) fn missing_layers(
        &self,
        layers: &[Blob],
        chains: &[Digest],
        diff_ids: &[Digest],
    ) -> Vec<Job> {
        let all = layers.iter().zip(chains).zip(diff_ids);
        all.filter(|((blob, chain), _)| !self.inner.has_layer(chain, &blob.digest))
            .map(|((blob, chain), diff_id)| Job {
                blob: blob.clone(),
                chain: chain.clone(),
                diff_id: diff_id.clone(),
            })
            .collect()
    }

    pub(super) async fn unpack(&self, jobs: Vec<Job>) -> Result<(), Error> {
        let mut budget = Budget::new(&self.inner.config.limits, &self.tenant.shown());
        self.progress.expect_layers(jobs.len());
        for job in jobs {
            let began = Instant::now();
            job.run(&self.inner, &mut budget).await?;
            self.inner.transfers.unpacked(began.elapsed());
            self.progress.layer_is_unpacked();
        }
        Ok(())
    }

    /// Layers are kept unpacked; their archives are not needed any more, unless the record of the image keeps them.
    pub(super) async fn drop_packed_layers(&self, content: &Content) -> Result<(), Error> {
        let Content::Archives(layers) = content else {
            return Ok(());
        };
        let (inner, digests) = (
            self.inner.clone(),
            layers
                .iter()
                .map(|layer| layer.digest.clone())
                .collect::<Vec<_>>(),
        );
        blocking("removing packed layers", move || {
            inner.discard(&digests, &[], 1)
        })
        .await
    }
}

/// The blobs to fetch for the layers of an image: for those that are unpacked already, only access is verified, unless all
/// archives are to be kept.
pub(super) fn wanted(layers: &[Blob], jobs: &[Job], keeps_layers: bool) -> Vec<Want> {
    let is_missing = |blob: &Blob| jobs.iter().any(|job| job.blob.digest == blob.digest);
    let want = |blob: &Blob| match keeps_layers || is_missing(blob) {
        true => Want::whole(blob),
        false => Want::proof(blob),
    };
    layers.iter().map(want).collect()
}

/// One layer to unpack.
pub(super) struct Job {
    blob: Blob,
    chain: Digest,
    diff_id: Digest,
}

impl Job {
    async fn run(&self, inner: &Arc<Inner>, budget: &mut Budget) -> Result<(), Error> {
        let own = inner.clone();
        let draft = blocking("making a layer's directory", move || {
            own.blobs.layer_draft()
        })
        .await?;
        let path: PathBuf = inner.blobs.blob(&self.blob.digest);
        let source = Source {
            path: &path,
            digest: &self.blob.digest,
            media_type: &self.blob.media_type,
            diff_id: &self.diff_id,
        };
        let span = info_span!(target: "otel", "image.unpack", oci.digest = %self.blob.digest);
        let unpacked = unpack(&*inner.unpackers, &source, draft.path(), budget);
        let unpacked = unpacked.instrument(span).await;
        let (inner, chain, blob) = (inner.clone(), self.chain.clone(), self.blob.digest.clone());
        // In any case: removing a half-made layer blocks, too.
        blocking("storing a layer", move || {
            let (usage, tree) = unpacked?;
            let is_ours = inner.blobs.commit_layer(draft, &chain, usage)?;
            // A stored layer without a record is as good, and gets a record now.
            if is_ours || !inner.read().layers.contains_key(&chain) {
                if !is_ours {
                    inner.blobs.grow(Part::Layers, usage);
                }
                let record = LayerRecord {
                    blob,
                    bytes: usage.bytes,
                    inodes: usage.inodes,
                    tree: Some(tree),
                };
                inner.record_layer(&chain, record)?;
            }
            Ok(())
        })
        .await
    }
}
