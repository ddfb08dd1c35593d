//! The layers of a pull: which are missing, and how they are unpacked and stored.
//!
//! Called by: the pull. [`crate::unpack`] runs the unpackers, one after the other, each when its blob is here and while others
//! arrive. Invariants: a layer is stored only after its diff id was verified; what one blob's unpacker has written is never taken
//! for another's; drafts of layers are synced together, and their archives, which nobody needs any more, are gone by then, so that
//! they never reach the disk; what was unpacked when a fetch fails is stored for the next attempt.
//! Not here: fetching blobs, recording the image.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join;
use tokio::sync::watch;
use tracing::{Instrument as _, info_span};

use super::Pull;
use super::fetch::Want;
use crate::blobs::blocking;
use crate::error::Error;
use crate::manifest::{Blob, Content};
use crate::metadata::{LayerRecord, Record};
use crate::reference::Digest;
use crate::store::{Inner, LayerDraft};
use crate::unpack::{Budget, Source, unpack};

/// Layers of this size together are stored while others are to come: a pull that is interrupted then need not begin anew.
/// Bytes.
const BATCH_BYTES: u64 = 1 << 30;

impl Pull {
    /// The layers of `record` that have to be unpacked: those that are not here, or came from another blob.
    pub(super) fn missing_layers(
        &self,
        layers: &[Blob],
        record: &Record,
        diff_ids: &[Digest],
    ) -> Vec<Job> {
        let is_named = |blob: &Digest| record.stored().any(|stored| stored == blob);
        let is_needed_later = |place: usize, blob: &Digest| {
            let mut later = layers.iter().skip(place + 1);
            later.any(|later| later.digest == *blob)
        };
        let all = layers.iter().zip(&record.chains).zip(diff_ids).enumerate();
        all.filter(|(_, ((blob, chain), _))| !self.inner.has_layer(chain, &blob.digest))
            .map(|(place, ((blob, chain), diff_id))| Job {
                blob: blob.clone(),
                chain: chain.clone(),
                diff_id: diff_id.clone(),
                is_last_use: !is_named(&blob.digest) && !is_needed_later(place, &blob.digest),
            })
            .collect()
    }

    /// Fetches blobs, and unpacks and stores layers meanwhile.
    pub(super) async fn fetch_and_unpack(
        &mut self,
        wants: Vec<Want>,
        jobs: Vec<Job>,
    ) -> Result<(), Error> {
        self.expect(&wants);
        self.progress.expect_layers(jobs.len());
        let (arrived, arrivals) = watch::channel(HashSet::new());
        let this = &*self;
        let fetch = async move {
            let is_here = |blob| {
                arrived.send_modify(|blobs: &mut HashSet<Digest>| {
                    blobs.insert(blob);
                });
            };
            // That a blob does not come ends the unpacking by itself.
            Ok(this.fetch_expected(wants, is_here).await)
        };
        let (fetched, ()) = try_join(fetch, this.unpack(jobs, arrivals)).await?;
        fetched
    }

    /// Unpacks and stores these layers, as far as their blobs arrive.
    async fn unpack(
        &self,
        jobs: Vec<Job>,
        mut arrivals: watch::Receiver<HashSet<Digest>>,
    ) -> Result<(), Error> {
        let mut budget = Budget::new(&self.inner.config.limits, &self.tenant.shown());
        let mut ready = Ready::default();
        for job in jobs {
            let is_here = arrivals.wait_for(|blobs| blobs.contains(&job.blob.digest));
            if is_here.await.is_err() {
                break;
            }
            let began = Instant::now();
            ready.add(job.run(&self.inner, &mut budget).await?, job);
            self.inner.transfers.unpacked(began.elapsed());
            self.progress.layer_is_unpacked();
            if ready.bytes >= BATCH_BYTES {
                self.store(std::mem::take(&mut ready)).await?;
            }
        }
        self.store(ready).await
    }

    /// Stores layers. It is not interrupted if nobody waits any more: their archives are gone.
    pub(super) async fn store(&self, ready: Ready) -> Result<(), Error> {
        let doing = "storing layers";
        if ready.layers.is_empty() {
            return Ok(());
        }
        let inner = self.inner.clone();
        let store = tokio::spawn(async move {
            let (own, spent) = (inner.clone(), ready.spent);
            let drop_spent = move || own.discard(&spent, &[], 1);
            blocking("removing packed layers", drop_spent).await?;
            inner.blobs.sync_store().await?;
            blocking(doing, move || inner.store_layers(ready.layers)).await
        });
        match store.await {
            Ok(stored) => stored,
            Err(join) if join.is_cancelled() => Err(Error::Cancelled { doing }),
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        }
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

/// Layers that are unpacked, and not stored yet.
#[derive(Default)]
pub(super) struct Ready {
    layers: Vec<LayerDraft>,
    /// Their archives that nobody needs any more.
    spent: Vec<Digest>,
    /// What they occupy.
    bytes: u64,
}

impl Ready {
    /// One layer, whose archive stays.
    pub(super) fn one(layer: LayerDraft) -> Self {
        Self {
            layers: vec![layer],
            ..Self::default()
        }
    }

    fn add(&mut self, layer: LayerDraft, job: Job) {
        self.bytes = self.bytes.saturating_add(layer.record.bytes);
        self.layers.push(layer);
        self.spent
            .extend(job.is_last_use.then_some(job.blob.digest));
    }
}

/// One layer to unpack.
pub(super) struct Job {
    blob: Blob,
    chain: Digest,
    diff_id: Digest,
    /// Neither a later layer nor the record of the image needs the blob.
    is_last_use: bool,
}

impl Job {
    /// Unpacks it below `tmp/`.
    async fn run(&self, inner: &Arc<Inner>, budget: &mut Budget) -> Result<LayerDraft, Error> {
        let own = inner.clone();
        let make = move || own.blobs.layer_draft();
        let draft = blocking("making a layer's directory", make).await?;
        let path: PathBuf = inner.blobs.blob(&self.blob.digest);
        let source = Source {
            path: &path,
            digest: &self.blob.digest,
            media_type: &self.blob.media_type,
            diff_id: &self.diff_id,
        };
        let span = info_span!(target: "otel", "image.unpack", oci.digest = %self.blob.digest);
        let unpacked = unpack(&*inner.unpackers, &source, draft.path(), budget);
        let (usage, tree) = unpacked.instrument(span).await?;
        Ok(LayerDraft {
            chain: self.chain.clone(),
            draft,
            record: LayerRecord {
                blob: self.blob.digest.clone(),
                bytes: usage.bytes,
                inodes: usage.inodes,
                tree: Some(tree),
            },
        })
    }
}
