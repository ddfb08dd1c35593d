//! Bounds what the store keeps in memory of all images together: configs, annotations, names, digests.
//!
//! Called by: the store, before it publishes an image. The limits of one image are those of [`crate::image_config`] and
//! [`crate::manifest`].
//! Invariants: an image that a container uses or that is pinned is never removed here; if all others would not make room,
//! nothing is removed and the new one is refused; no namespace (or zone of registries, where the namespace is not known) has
//! more than it leaves for others, so that each that comes later still gets some.
//! Not here: disk space, which the kubelet watches.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use crate::error::Error;
use crate::record::Record;
use crate::reference::ImageId;
use crate::store::{Index, Inner};
use crate::tenants::Tenant;

/// What is held of the memory, with a new record.
#[derive(Clone, Copy)]
struct Held {
    /// By all images together. Bytes.
    all: u64,
    /// By those of whoever brings the new one. Bytes.
    own: u64,
}

impl Held {
    /// Whether this may be: nobody has more than is left for others. The operator may have all.
    fn fits(self, tenant: &Tenant, allowed: u64) -> bool {
        let left = allowed.checked_sub(self.all);
        left.is_some_and(|left| *tenant == Tenant::Operator || self.own <= left)
    }
}

/// An image of the store that may make room.
struct Unused {
    id: ImageId,
    weight: u64,
    is_own: bool,
    /// What all images of its tenant take. Bytes.
    share: u64,
}

impl Inner {
    /// Makes room for `new`, which may replace the record of its id and is brought by `tenant`: removes unused images, first
    /// those of whoever has the most text, and of them those with the most. The caller holds the writer's lock. Blocking.
    ///
    /// Errors: [`Error::Limit`] if that would not be enough; the disk fails.
    pub(crate) fn make_room(&self, new: &Record, tenant: &Tenant) -> Result<(), Error> {
        let chosen = self.in_the_way_of(new, tenant)?;
        if chosen.is_empty() {
            return Ok(());
        }
        for record in self.forget(|record| chosen.contains(&record.id))? {
            tracing::warn!(
                image = %record.id,
                names = ?record.tags.iter().take(3).collect::<Vec<_>>(),
                bytes = record.weight(),
                limit = self.config.limits.max_metadata_bytes,
                "an unused image is removed: the texts of all images exceed images.max_metadata_bytes, and {} has brought the most",
                record.tenant().shown()
            );
        }
        self.garbage.notify_one();
        Ok(())
    }

    /// The images to remove for `new`; none if there is room.
    fn in_the_way_of(&self, new: &Record, tenant: &Tenant) -> Result<BTreeSet<ImageId>, Error> {
        let (allowed, weight) = (self.config.limits.max_metadata_bytes, new.weight());
        let index = self.read();
        let known = index.images.get(&new.id).map(|(record, _)| record);
        let before = known.map_or(0, Record::weight);
        if weight <= before {
            return Ok(BTreeSet::new());
        }
        let shares = index.shares();
        let held = Held {
            all: shares.values().sum::<u64>() + weight - before,
            own: shares.get(tenant).copied().unwrap_or_default() + weight - before,
        };
        let mut unused = index.unused(tenant, &shares);
        // Nobody with less than this tenant loses anything to it.
        unused.retain(|unused| unused.id != new.id && (unused.is_own || unused.share >= held.own));
        // Light ones go, too, when those with more text do not suffice: many of them could keep everybody out.
        unused.sort_by_key(|unused| Reverse((unused.share, unused.weight)));
        let (mut after, mut chosen) = (held, BTreeSet::new());
        for unused in unused {
            if after.fits(tenant, allowed) {
                break;
            }
            after.all -= unused.weight;
            after.own -= if unused.is_own { unused.weight } else { 0 };
            chosen.insert(unused.id);
        }
        match after.fits(tenant, allowed) && (chosen.is_empty() || !self.keeps_everything()) {
            true => Ok(chosen),
            false => Err(refused(new, held, tenant, allowed)),
        }
    }
}

impl Index {
    /// What the images of each tenant take. Bytes.
    fn shares(&self) -> HashMap<Tenant, u64> {
        let mut shares = HashMap::new();
        for (record, _) in self.images.values() {
            *shares.entry(record.tenant()).or_default() += record.weight();
        }
        shares
    }

    /// The images that may be removed for one of `tenant`.
    fn unused(&self, tenant: &Tenant, shares: &HashMap<Tenant, u64>) -> Vec<Unused> {
        let images = self.images.values();
        let unused =
            images.filter(|(record, image)| !image.pinned && !self.leases.holds_image(&record.id));
        let unused = unused.map(|(record, _)| {
            let of = record.tenant();
            Unused {
                id: record.id.clone(),
                weight: record.weight(),
                is_own: of == *tenant,
                share: shares.get(&of).copied().unwrap_or_default(),
            }
        });
        unused.collect()
    }
}

/// The error for an image that has no room; `held` is what would be held with it.
fn refused(new: &Record, held: Held, tenant: &Tenant, allowed: u64) -> Error {
    let (weight, all, own) = (new.weight(), held.all, held.own);
    Error::Limit {
        what: format!(
            "image {}, whose texts take {weight} bytes of memory, {all} with those of all other images and {own} with those of {}, which may not have more than is left for others,",
            new.id,
            tenant.shown()
        ),
        limit: "images.max_metadata_bytes",
        allowed,
    }
}
