//! The identity of images: when two are the same, and which id an image gets.
//!
//! The pull creates a [`Candidate`], the store publishes it under the id chosen here; old records pass
//! through [`drop_ambiguous_names`] when the store opens.
//! Invariants: an id has one content, for ever: only the names of a record change, and different content gets
//! another id. The digest of a config is an id only if the config ties the layers by verified diff ids; every other
//! image has an id by its manifest.
//! Not here: names of images, disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::metadata::{Program, Record};
use crate::reference::{Digest, ImageId};
use crate::run_config::weight_of;
use crate::tenants::{Tenant, zone_of};

/// Most names of an image. Some of whoever has given it the most of them are dropped to make room.
const MAX_NAMES: usize = 1024;
/// Most bytes of them together.
const MAX_NAME_BYTES: usize = 96 << 10;

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
            kept.brought_by = match self.record.brought_by {
                Some(Tenant::Operator) => Some(Tenant::Operator),
                new => kept.brought_by.or(new),
            };
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

/// Drops names of `kept` until those of `new`, which is the same image, make no more than [`MAX_NAMES`], nor more than
/// [`MAX_NAME_BYTES`]. Pinned names stay.
fn make_room_for_names(kept: &mut Record, new: &Record) {
    let is_new = |name: &&String| new.tags.contains(*name) || new.digests.contains(*name);
    let bytes_of = |names: &BTreeSet<String>| names.iter().map(String::len).sum::<usize>();
    let most = MAX_NAMES.saturating_sub(new.tags.len() + new.digests.len());
    let most_bytes = MAX_NAME_BYTES.saturating_sub(bytes_of(&new.tags) + bytes_of(&new.digests));
    // Tags first: of one repository they go before the digest, which says more.
    let old = kept.tags.iter().chain(&kept.digests);
    let old: Vec<String> = old.filter(|name| !is_new(name)).cloned().collect();
    let (mut count, mut bytes) = (old.len(), old.iter().map(String::len).sum::<usize>());
    let old = old.into_iter().filter(|name| !kept.pins.contains(name));
    let mut old: Vec<OldName> = old.map(OldName::new).collect();
    let own = new.tags.iter().chain(&new.digests).next();
    let own = own.map(|name| OldName::new(name.clone()));
    while count > most || bytes > most_bytes {
        let Some(place) = most_crowded(&old, own.as_ref()) else {
            return;
        };
        let name = old.remove(place).name;
        kept.tags.remove(&name);
        kept.digests.remove(&name);
        kept.of_namespace.remove(&name);
        kept.proven.remove(&name);
        count -= 1;
        bytes -= name.len();
    }
}

/// A name of an image, and the ranks by which it is one of many: its zone, registry, and the parts of its repository.
struct OldName {
    name: String,
    ranks: Vec<String>,
}

impl OldName {
    fn new(name: String) -> Self {
        let repository = name.split('@').next().unwrap_or_default();
        let tag = repository.rfind(':').filter(|colon| {
            let slash = repository.rfind('/');
            slash.is_some_and(|slash| slash < *colon)
        });
        let repository = &repository[..tag.unwrap_or(repository.len())];
        let mut parts = repository.split('/');
        let registry = parts.next().unwrap_or_default();
        let ranks = [zone_of(registry), registry.to_owned()];
        let ranks = ranks.into_iter().chain(parts.map(str::to_owned)).collect();
        Self { name, ranks }
    }
}

/// The place of a name to drop: of the zone whose names take the most, and there of the registry, and so on down to one
/// repository, so that nobody's many names or copies cost an image those of others. Of equals `own` loses.
fn most_crowded(names: &[OldName], own: Option<&OldName>) -> Option<usize> {
    let mut chosen: Vec<usize> = (0..names.len()).collect();
    let mut level = 0;
    while chosen.len() > 1 {
        let mut by_rank: BTreeMap<Option<&String>, Vec<usize>> = BTreeMap::new();
        for place in chosen {
            let rank = names[place].ranks.get(level);
            by_rank.entry(rank).or_default().push(place);
        }
        let own = own.and_then(|own| own.ranks.get(level));
        let crowd = |(rank, those): &(Option<&String>, Vec<usize>)| {
            let taken = weight_of(those.iter().map(|place| &names[*place].name));
            (taken, *rank == own)
        };
        let (rank, those) = by_rank.into_iter().max_by_key(crowd)?;
        if rank.is_none() {
            return those.first().copied();
        }
        chosen = those;
        level += 1;
    }
    chosen.first().copied()
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
