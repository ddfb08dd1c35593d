//! Bounds what the store keeps in memory of all images together: configs, annotations, names, digests.
//!
//! Called by: the store, before it publishes an image. The limits of one image are those of [`crate::image_config`] and
//! [`crate::manifest`].
//! Invariants: an image that a container uses or that is pinned is never removed here; if all others would not make room,
//! nothing is removed and the new one is refused.
//! Not here: disk space, which the kubelet watches.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::error::Error;
use crate::record::Record;
use crate::reference::ImageId;
use crate::store::Inner;

impl Inner {
    /// Makes room for `new`, which may replace the record of its id: removes unused images, those with the most text first.
    /// The caller holds the writer's lock. Blocking. Errors: [`Error::Limit`] if that would not be enough; the disk fails.
    pub(crate) fn make_room(&self, new: &Record) -> Result<(), Error> {
        let chosen = self.in_the_way_of(new)?;
        if chosen.is_empty() {
            return Ok(());
        }
        for record in self.forget(|record| chosen.contains(&record.id))? {
            tracing::warn!(
                image = %record.id,
                names = ?record.tags.iter().take(3).collect::<Vec<_>>(),
                bytes = record.weight(),
                limit = self.config.limits.max_metadata_bytes,
                "an unused image is removed: the texts of all images exceed images.max_metadata_bytes, and it has the most"
            );
        }
        self.garbage.notify_one();
        Ok(())
    }

    /// The images to remove for `new`; none if there is room.
    fn in_the_way_of(&self, new: &Record) -> Result<BTreeSet<ImageId>, Error> {
        let (allowed, own) = (self.config.limits.max_metadata_bytes, new.weight());
        let index = self.read();
        let others = index.images.values();
        let others: Vec<_> = others
            .filter(|(record, _)| record.id != new.id)
            .map(|(record, image)| (record.weight(), record, image))
            .collect();
        let mut held = others.iter().fold(own, |sum, (weight, ..)| sum + weight);
        if held <= allowed {
            return Ok(BTreeSet::new());
        }
        let refused = Error::Limit {
            what: format!(
                "image {}, whose texts take {own} bytes of memory and {held} with those of all other images,",
                new.id
            ),
            limit: "images.max_metadata_bytes",
            allowed,
        };
        let mut unused: Vec<_> = others
            .into_iter()
            .filter(|(_, record, image)| !image.pinned && !index.leases.holds_image(&record.id))
            .collect();
        // Light ones go, too, when those with more text do not suffice: many of them could keep everybody out.
        unused.sort_by_key(|(weight, ..)| Reverse(*weight));
        let mut chosen = BTreeSet::new();
        for (weight, record, _) in unused {
            if held <= allowed {
                break;
            }
            held -= weight;
            chosen.insert(record.id.clone());
        }
        match held <= allowed && !self.keeps_everything() {
            true => Ok(chosen),
            false => Err(refused),
        }
    }
}
