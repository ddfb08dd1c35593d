//! What makes two images the same, and which id an image gets.
//!
//! Place in the flow: the pull makes a [`Candidate`], the store publishes it under the id chosen here; old records pass
//! through [`drop_ambiguous_names`] when the store opens.
//! Invariants: an id stands for one content, for ever: a record is never changed but in its names, and a record whose
//! content differs gets another id. The digest of a config is an id only where that config ties the layers by diff ids
//! that were verified; everything else is named by its manifest.
//! Not here: names of images, disk.

use crate::error::Error;
use crate::metadata::{Program, Record};
use crate::reference::{Digest, ImageId};

/// An image that is about to be recorded. The id in the record does not count yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Everything but the final id.
    pub record: Record,
    /// The digest of the manifest that names its config and layers.
    pub manifest: Digest,
    /// The digest of the config blob.
    pub config: Digest,
    /// All blobs and layers that its pull has used.
    pub content: Vec<Digest>,
}

impl Candidate {
    /// The ids it may have, best first.
    ///
    /// The last one cannot be the digest of a document of anybody: it is there for a manifest that is also, by
    /// construction, the config of another image.
    fn ids(&self) -> Vec<ImageId> {
        let by_manifest = ImageId::new(self.manifest.clone());
        let own = ImageId::new(Digest::of(
            format!("coracle image of manifest {}", self.manifest).as_bytes(),
        ));
        match self.record.program {
            // Nothing in the config ties the module.
            Program::Module { .. } => vec![by_manifest, own],
            Program::ModuleFile { .. } | Program::Linux => {
                vec![ImageId::new(self.config.clone()), by_manifest, own]
            }
        }
    }

    /// The record to keep: the one that is there already with more names, or a new one under a free id.
    ///
    /// `known` answers what is recorded under an id. Errors: every id belongs to something else.
    pub(crate) fn assign_id<'a>(
        self,
        known: impl Fn(&ImageId) -> Option<&'a Record>,
    ) -> Result<Record, Error> {
        let ids = self.ids();
        let mut same = ids.iter().filter_map(&known);
        if let Some(there) = same.find(|there| has_same_content(there, &self.record)) {
            let mut kept = there.clone();
            kept.removed = false;
            kept.tags.extend(self.record.tags);
            kept.digests.extend(self.record.digests);
            return Ok(kept);
        }
        match ids.into_iter().find(|id| known(id).is_none()) {
            Some(id) => Ok(Record { id, ..self.record }),
            None => Err(Error::invalid(
                format!("image of manifest {}", self.manifest),
                "other images have all ids that it could have",
            )),
        }
    }
}

/// True if both are the same image, whatever their names, ids and compressed sizes.
fn has_same_content(one: &Record, other: &Record) -> bool {
    one.program == other.program
        && one.config == other.config
        && one.chains == other.chains
        && one.blobs == other.blobs
        && one.annotations == other.annotations
}

/// Takes the names from a record in which an earlier build may have merged several images: nobody can tell any more
/// which of them its program came from. True if that was done. Containers find it by its id as before.
///
/// Such a record knows no manifest and is a bare module, so that its id is the digest of a config that ties nothing, and
/// it was pulled by more than one manifest or index.
pub(crate) fn drop_ambiguous_names(record: &mut Record) -> bool {
    let mut contents = record
        .digests
        .iter()
        .filter_map(|name| name.rsplit_once('@'));
    let first = contents.next().map(|(_, digest)| digest.to_owned());
    let has_several = contents.any(|(_, digest)| Some(digest) != first.as_deref());
    let is_ambiguous = record.manifest.is_none()
        && matches!(record.program, Program::Module { .. })
        && has_several;
    if is_ambiguous {
        record.tags.clear();
        record.digests.clear();
    }
    is_ambiguous
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests;
