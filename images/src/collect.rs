//! Deletes what nobody needs, and keeps pulls' content from being deleted under them.
//!
//! Place in the flow: removal, failed pulls and the daemon's own collection end here.
//! Invariants: content goes only when no record names it and no pull has pinned it, checked and done under
//! the lock that pins are taken with; nothing goes at all while damaged metadata is kept, because a record
//! that was lost may have named it.
//! Not here: which images are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::blobs::Temporary;
use crate::error::Error;
use crate::metadata::{Change, LayerRecord, Record};
use crate::reference::{Digest, ImageId};
use crate::store::Inner;
use crate::unpack::Usage;

impl Inner {
    /// Forgets removed images that no lease holds any more, then deletes all content that is not named.
    /// Blocking.
    pub(crate) fn collect(&self) -> Result<(), Error> {
        if self.keep_everything {
            return Ok(());
        }
        let guard = self.writer();
        let forgotten: Vec<ImageId> = {
            let index = self.read();
            let is_gone = |record: &&Record| record.removed && !index.is_leased(&record.id);
            let records = index.images.values().map(|(record, _)| record);
            records
                .filter(is_gone)
                .map(|record| record.id.clone())
                .collect()
        };
        self.metadata.commit(&Change {
            drop_images: forgotten.clone(),
            ..Change::default()
        })?;
        {
            let mut index = self.write();
            index.images.retain(|id, _| !forgotten.contains(id));
        }
        let layers: Vec<Digest> = self.read().layers.keys().cloned().collect();
        drop(guard);
        self.discard(&self.blobs.stored_blobs()?, &layers, 0)
    }

    /// Deletes those of `blobs` and `layers` that no record names and at most `pins` pulls use. Blocking.
    ///
    /// Files go first and their records after them: on a full disk the database has no room to begin with,
    /// and a record whose layer is gone is dropped at the next start.
    pub(crate) fn discard(
        &self,
        blobs: &[Digest],
        layers: &[Digest],
        pins: usize,
    ) -> Result<(), Error> {
        if self.keep_everything {
            return Ok(());
        }
        let graves = self.bury(blobs, layers, pins)?;
        // Deleting trees takes time that nobody should wait for: no lock is held here.
        let buried: Vec<Digest> = graves.into_iter().map(|(chain, _)| chain).collect();
        let _writer = self.writer();
        let drop_layers = {
            let index = self.read();
            // A layer may have been pulled again meanwhile.
            buried
                .into_iter()
                .filter(|chain| !index.layers.contains_key(chain))
                .collect()
        };
        self.metadata.commit(&Change {
            drop_layers,
            ..Change::default()
        })
    }

    /// Takes unneeded content out of sight. Layers are deleted when the answer is dropped.
    fn bury(
        &self,
        blobs: &[Digest],
        layers: &[Digest],
        pins: usize,
    ) -> Result<Vec<(Digest, Option<Temporary>)>, Error> {
        let _writer = self.writer();
        let pinned = self.lock_pins();
        let is_free = |digest: &Digest| pinned.get(digest).copied().unwrap_or(0) <= pins;
        let (blobs, layers): (Vec<Digest>, Vec<(Digest, LayerRecord)>) = {
            let index = self.read();
            let (used_blobs, used_layers) = index.referenced();
            let recorded = |chain: &Digest| Some((chain.clone(), index.layers.get(chain)?.clone()));
            let blobs = blobs
                .iter()
                .filter(|blob| is_free(blob) && !used_blobs.contains(blob));
            let layers = layers
                .iter()
                .filter(|chain| is_free(chain) && !used_layers.contains(chain));
            (
                blobs.cloned().collect(),
                layers.filter_map(recorded).collect(),
            )
        };
        for digest in &blobs {
            self.blobs.remove_blob(digest)?;
        }
        let mut graves = Vec::new();
        for (chain, layer) in layers {
            self.write().layers.remove(&chain);
            let grave = self.blobs.retire_layer(&chain, layer.usage())?;
            graves.push((chain, grave));
        }
        Ok(graves)
    }

    /// Deletes layers that were renamed into place but not recorded: the daemon died in between. Blocking.
    pub(crate) fn sweep_unrecorded_layers(&self) -> Result<(), Error> {
        if self.keep_everything {
            return Ok(());
        }
        for chain in self.blobs.stored_layers()? {
            if !self.read().layers.contains_key(&chain) {
                tracing::info!(layer = %chain, "removing a layer that was never recorded");
                drop(self.blobs.retire_layer(&chain, Usage::default())?);
            }
        }
        Ok(())
    }
}

/// What one pull keeps from being deleted while it runs.
pub(crate) struct Pins {
    inner: Arc<Inner>,
    digests: BTreeSet<Digest>,
}

impl Pins {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            digests: BTreeSet::new(),
        }
    }

    /// Keeps a blob or a layer from now on.
    pub(crate) fn add(&mut self, digest: &Digest) {
        if self.digests.insert(digest.clone()) {
            *self.inner.lock_pins().entry(digest.clone()).or_default() += 1;
        }
    }

    /// Everything kept.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.digests.iter().cloned().collect()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.inner.lock_pins();
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}
