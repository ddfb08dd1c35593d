//! The identity of images: when two are the same, and which id an image gets.
//!
//! The pull creates a [`Candidate`], the store publishes it under the id chosen here; old records pass
//! through [`drop_ambiguous_names`] when the store opens.
//! Invariants: an id has one content, for ever: only the names of a record change, and different content gets
//! another id. The digest of a config is an id only if the config ties the layers by verified diff ids; every other
//! image has an id by its manifest.
//! Not here: names of images, disk.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::metadata::{Program, Record};
use crate::reference::{Digest, ImageId};

/// Most names of an image. Of the registry that has given it the most of them, some are dropped to make room.
const MAX_NAMES: usize = 1024;

/// An image that is about to be recorded. The id in its record is not final.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Everything but the final id.
    pub record: Record,
    /// The digest of the manifest that names its config and layers.
    pub manifest: Digest,
    /// The digest of the config blob.
    pub config: Digest,
    /// All blobs and layers of its pull.
    pub content: Vec<Digest>,
}

impl Candidate {
    /// The ids it may have, best first.
    ///
    /// The last one cannot be the digest of any document: it is for a manifest that is also, by construction, the
    /// config of another image.
    fn ids(&self) -> Vec<ImageId> {
        let by_manifest = ImageId::new(self.manifest.clone());
        let own = ImageId::new(Digest::of(
            format!("coracle image of manifest {}", self.manifest).as_bytes(),
        ));
        match self.record.program {
            // Nothing in the config ties the module, or the files.
            Program::Module { .. } => vec![by_manifest, own],
            Program::Linux if self.record.is_artifact => vec![by_manifest, own],
            Program::ModuleFile { .. } | Program::Linux => {
                vec![ImageId::new(self.config.clone()), by_manifest, own]
            }
        }
    }

    /// The record to keep: an existing one with more names, or a new one under a free id.
    ///
    /// `known` finds the record of an id. Errors: every id belongs to other content.
    pub(crate) fn assign_id<'a>(
        self,
        known: impl Fn(&ImageId) -> Option<&'a Record>,
    ) -> Result<Record, Error> {
        let ids = self.ids();
        let mut same = ids.iter().filter_map(&known);
        if let Some(there) = same.find(|there| has_same_content(there, &self.record)) {
            let mut kept = there.clone();
            kept.merge_acceptance(&self.record);
            kept.removed = false;
            make_room_for_names(&mut kept, &self.record);
            kept.tags.extend(self.record.tags);
            kept.digests.extend(self.record.digests);
            kept.pins.extend(self.record.pins);
            kept.add_proven(self.record.proven);
            kept.add_verified(self.record.verified);
            kept.kept = self.record.kept.or(kept.kept);
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

/// Drops names of `kept` until those of `new`, which is the same image, make no more than [`MAX_NAMES`]: names of the
/// registry that it has the most names of, so that nobody's many names cost others theirs. Pinned names stay.
fn make_room_for_names(kept: &mut Record, new: &Record) {
    let is_new = |name: &String| new.tags.contains(name) || new.digests.contains(name);
    let most = MAX_NAMES.saturating_sub(new.tags.len() + new.digests.len());
    let old = kept.tags.iter().chain(&kept.digests);
    let old = old.filter(|name| !is_new(name)).cloned();
    let mut by_registry: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut count = 0;
    for name in old {
        count += 1;
        let registry = name.split('/').next().unwrap_or_default().to_owned();
        if !kept.pins.contains(&name) {
            by_registry.entry(registry).or_default().push(name);
        }
    }
    while count > most {
        let Some(names) = by_registry.values_mut().max_by_key(|names| names.len()) else {
            return;
        };
        let Some(name) = names.pop() else { return };
        kept.tags.remove(&name);
        kept.digests.remove(&name);
        kept.of_namespace.remove(&name);
        kept.proven.remove(&name);
        count -= 1;
    }
}

/// True if both are the same image; names, ids and compressed sizes do not count.
fn has_same_content(one: &Record, other: &Record) -> bool {
    one.program == other.program
        && one.is_artifact == other.is_artifact
        && one.config == other.config
        && one.chains == other.chains
        && one.blobs == other.blobs
        && one.annotations == other.annotations
}

/// Removes the names of a record in which an earlier build may have merged several images, so that the origin of its
/// program is unknown. True if it did. Containers find it by its id as before.
///
/// Such a record has no manifest and is a bare module, so that its id is the digest of a config that ties nothing, and
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
        record.pins.clear();
        record.of_namespace.clear();
        record.proven.clear();
    }
    is_ambiguous
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests;
