//! The garbage collector of the store, and the pins that protect the content of running pulls.
//!
//! Called by: the daemon, which waits for [`Images::garbage`] and then calls [`Images::collect`], beside all requests;
//! and by removals and failed pulls.
//! Invariants: content is deleted only if no record names it, no holder has claimed it and no pull has pinned it,
//! checked and deleted under the lock of the pins; nothing is deleted while damaged metadata is kept or collection is
//! suspended, because containers may use content without a record.
//! Not here: which images are unused, compiled code.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::blobs::Temporary;
use crate::blocking::removing;
use crate::error::Error;
use crate::metadata::{Change, LayerRecord, Program, Record};
use crate::reference::{Digest, ImageId};
use crate::store::{Images, Inner};
use crate::unpack::Usage;

/// The result of a collection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Removed images whose records were deleted, because their last holder has released them.
    pub images: Vec<ImageId>,
    /// Whether unneeded blobs were kept because they are too young: a failed pull may be tried again.
    pub left_young: bool,
}

impl Images {
    /// Deletes content that no image, holder or pull needs, except for blobs that were written less than `spare` ago.
    /// After a start, call it when all leases are claimed again.
    ///
    /// Deletes nothing while damaged metadata is kept (see the log). Errors: the disk fails.
    pub async fn collect(&self, spare: Duration) -> Result<Collected, Error> {
        let inner = self.inner.clone();
        removing("collecting unused content", move || inner.collect(spare)).await
    }

    /// Makes [`Images::garbage`] return: something that belongs to removed images may be left.
    pub fn wake_collector(&self) {
        self.inner.garbage.notify_one();
    }

    /// Waits until there may be something to collect. One caller at a time.
    pub async fn garbage(&self) {
        self.inner.garbage.notified().await;
    }

    /// Whether an image runs the module of this SHA-256 (64 digits), or did and is still used.
    pub fn has_module(&self, hex: &str) -> bool {
        let index = self.inner.read();
        let mut programs = index.images.values().map(|(record, _)| &record.program);
        programs.any(|program| match program {
            Program::Module { digest } | Program::ModuleFile { digest, .. } => digest.hex() == hex,
            Program::Linux => false,
        })
    }
}

impl Inner {
    /// Deletes the records of removed images without a holder, then all unreferenced content. Blocking.
    fn collect(&self, spare: Duration) -> Result<Collected, Error> {
        if self.keeps_everything() {
            return Ok(Collected::default());
        }
        let (gone, layers) = {
            let _writer = self.writer();
            let gone = self.forget(|record| record.removed)?;
            let layers: Vec<Digest> = self.read().layers.keys().cloned().collect();
            (gone, layers)
        };
        let images = gone.iter().map(|record| record.id.clone()).collect();
        // Content of a removed image is not spared: no pull needs it.
        let freed: Vec<Digest> = gone.iter().flat_map(Record::stored).cloned().collect();
        self.discard(&freed, &layers, 0)?;
        self.sweep_unrecorded_layers()?;
        let (old, left_young) = self.old_blobs(spare)?;
        self.discard(&old, &[], 0)?;
        let _writer = self.writer();
        self.forget_sources()?;
        Ok(Collected { images, left_young })
    }

    /// The blobs that were written at least `spare` ago, and whether there are younger ones that no record names.
    fn old_blobs(&self, spare: Duration) -> Result<(Vec<Digest>, bool), Error> {
        let stored = self.blobs.stored_blobs()?;
        let now = SystemTime::now();
        let is_young = |digest: &Digest| {
            let written =
                std::fs::metadata(self.blobs.blob(digest)).and_then(|found| found.modified());
            written.is_ok_and(|written| is_young(written, now, spare))
        };
        let (young, old): (Vec<Digest>, Vec<Digest>) = stored.into_iter().partition(is_young);
        let index = self.read();
        let (used, _) = index.referenced();
        let left_young = young.iter().any(|digest| !used.contains(digest));
        Ok((old, left_young))
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
        if self.keeps_everything() {
            return Ok(());
        }
        let removed = self.unlink_content(blobs, layers, pins)?;
        let mut buried = Vec::with_capacity(removed.len());
        for (chain, layer) in removed {
            // Deleting trees takes time that nobody should wait for: no lock is held here.
            if let Some(layer) = layer {
                layer.remove();
            }
            buried.push(chain);
        }
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

    /// Removes unneeded content from the store. Its layers are deleted by the caller, or when the returned values are dropped.
    fn unlink_content(
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
            let is_free = |digest: &Digest| is_free(digest) && !index.leases.holds_content(digest);
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
        let mut removed = Vec::new();
        for (chain, layer) in layers {
            let mut index = self.write();
            index.layers.remove(&chain);
            index.broken.remove(&chain);
            drop(index);
            let removed_layer = self.blobs.retire_layer(&chain, layer.usage())?;
            removed.push((chain, removed_layer));
        }
        Ok(removed)
    }

    /// Deletes layers without a record that nobody uses: a daemon died before it recorded them, or a database was lost
    /// and their containers have ended. Blocking.
    fn sweep_unrecorded_layers(&self) -> Result<(), Error> {
        for chain in self.blobs.stored_layers()? {
            let writer = self.writer();
            let is_used = {
                let (pinned, index) = (self.lock_pins(), self.read());
                pinned.contains_key(&chain)
                    || index.layers.contains_key(&chain)
                    || index.leases.holds_content(&chain)
            };
            if !is_used {
                tracing::info!(layer = %chain, "removing a layer that no record names");
                let removed_layer = self.blobs.retire_layer(&chain, Usage::default())?;
                drop(writer);
                if let Some(layer) = removed_layer {
                    layer.remove();
                }
            }
        }
        Ok(())
    }
}

/// The pins of one pull, which protect content from deletion while it runs.
pub(crate) struct Pins {
    inner: Arc<Inner>,
    digests: BTreeSet<Digest>,
    /// Whether the pull leaves nothing for the collector.
    pub(crate) is_done: bool,
}

impl Pins {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            digests: BTreeSet::new(),
            is_done: false,
        }
    }

    /// Pins a blob or a layer.
    pub(crate) fn add(&mut self, digest: &Digest) {
        if self.digests.insert(digest.clone()) {
            *self.inner.lock_pins().entry(digest.clone()).or_default() += 1;
        }
    }

    /// All pinned digests.
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
        if !self.is_done {
            self.inner.garbage.notify_one();
        }
    }
}

/// Whether content that was `written` then is spared `now`. A time in the future (the clock went back) counts as old.
/// That costs a transfer at most, because a running pull pins its content.
fn is_young(written: SystemTime, now: SystemTime, spare: Duration) -> bool {
    now.duration_since(written).is_ok_and(|age| age < spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_keeps_nothing_young_for_ever() {
        let (now, spare) = (SystemTime::now(), Duration::from_secs(600));
        let day = Duration::from_secs(86_400);
        assert!(is_young(now, now, spare));
        assert!(is_young(now - spare / 2, now, spare));
        for (written, at) in [(now, now + spare), (now, now + day), (now + day, now)] {
            assert!(!is_young(written, at, spare), "{written:?} at {at:?}");
        }
    }
}
