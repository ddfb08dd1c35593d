//! The names that a pull or an import gives to its image.
//!
//! Called by: the pull, for the record and for messages; [`crate::import`] makes them for an image of an archive.
//! Invariant: a pinned image is pinned by its tags, and by its digests only if it has no tags.
//! Must not know: which image had the names before.

use crate::metadata::Record;
use crate::reference::{Digest, ImageRef, Target};

/// The names that an image gets.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Tags and digests. Never empty.
    pub references: Vec<ImageRef>,
    /// Whether a registry would know the image by its topmost digest, so that it gets names with it.
    pub has_digest: bool,
    /// Whether the names are pinned.
    pub is_pinned: bool,
}

impl Names {
    /// Gives them to the record of the image whose topmost document is `top`.
    pub(super) fn add_to(&self, record: &mut Record, top: &Digest) {
        for reference in &self.references {
            if self.has_digest {
                let by_digest = reference.at(top);
                record.digests.insert(by_digest.to_string());
            }
            if matches!(reference.target(), Target::Tag(_)) {
                record.tags.insert(reference.to_string());
            }
        }
        if self.is_pinned {
            // When its tags move to another image, this one is no longer needed.
            let pins = if record.tags.is_empty() {
                &record.digests
            } else {
                &record.tags
            };
            record.pins = pins.clone();
        }
    }

    /// The registry of the first.
    pub(crate) fn registry(&self) -> &str {
        self.references.first().map_or("", ImageRef::registry)
    }

    /// For messages.
    pub(crate) fn first(&self) -> String {
        self.references
            .first()
            .map_or_else(String::new, ImageRef::to_string)
    }
}
