//! Leases of containers on images, by id, and on blobs and layers, by digest.
//!
//! Called by: [`crate::holders`], when a container is created or claimed after a start; and by the collector before it
//! deletes. Invariants: a lease lasts until its holder is released; the cost of a lookup does not depend on the number
//! of holders. Not here: whether an image exists, who the holders are.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::reference::{Digest, ImageId};

/// The leases of one holder.
#[derive(Debug, Default)]
struct Held {
    images: BTreeSet<ImageId>,
    content: BTreeSet<Digest>,
}

/// The leases of all holders.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    holders: HashMap<String, Held>,
    images: HashMap<ImageId, usize>,
    content: HashMap<Digest, usize>,
}

impl Leases {
    /// Leases an image to `holder`; it may be repeated.
    pub(crate) fn take(&mut self, holder: &str, id: &ImageId) {
        let held = self.holders.entry(holder.to_owned()).or_default();
        if held.images.insert(id.clone()) {
            *self.images.entry(id.clone()).or_default() += 1;
        }
    }

    /// Leases a blob or a layer to `holder`, whether or not an image names it.
    pub(crate) fn claim(&mut self, holder: &str, digest: Digest) {
        let held = self.holders.entry(holder.to_owned()).or_default();
        if held.content.insert(digest.clone()) {
            *self.content.entry(digest).or_default() += 1;
        }
    }

    /// Ends all leases of `holder`. Returns the images without a holder, and whether content became free.
    pub(crate) fn release(&mut self, holder: &str) -> (Vec<ImageId>, bool) {
        let held = self.holders.remove(holder).unwrap_or_default();
        let images = held.images.into_iter();
        let freed = images
            .filter(|id| give_back(&mut self.images, id))
            .collect();
        let content = held.content.iter();
        let count = content.filter(|digest| give_back(&mut self.content, digest));
        (freed, count.count() > 0)
    }

    /// Whether a holder has this image.
    pub(crate) fn holds_image(&self, id: &ImageId) -> bool {
        self.images.contains_key(id)
    }

    /// Whether a holder has this blob or layer.
    pub(crate) fn holds_content(&self, digest: &Digest) -> bool {
        self.content.contains_key(digest)
    }
}

/// Decrements a count; true if it was the last.
fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else {
        return false;
    };
    *count -= 1;
    if *count > 0 {
        return false;
    }
    counts.remove(key);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_holder_frees_and_taking_twice_counts_once() {
        let mut leases = Leases::default();
        let (id, layer) = (ImageId::new(Digest::of(b"i")), Digest::of(b"l"));
        for holder in ["a", "a", "b"] {
            leases.take(holder, &id);
            leases.claim(holder, layer.clone());
        }
        assert_eq!(leases.release("a"), (vec![], false));
        assert!(leases.holds_image(&id) && leases.holds_content(&layer));
        assert_eq!(leases.release("b"), (vec![id.clone()], true));
        assert!(!leases.holds_image(&id) && !leases.holds_content(&layer));
        assert_eq!(leases.release("b"), (vec![], false));
    }
}
