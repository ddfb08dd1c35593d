//! The records of images and layers, as they are on disk.
//!
//! The pull creates them, [`crate::metadata`] writes and reads them, the store keeps them in memory and
//! publishes an [`Image`] for each.
//! Invariants: fields are only added, with a default; of the record of an image nothing changes but its names.
//! Not here: the database, which records are the same image.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blobs::Blobs;
use crate::image::{Artifact, Image, Kind, LinuxImage, WasmImage};
use crate::reference::{Digest, ImageId};
use crate::run_config::{RunConfig, weight_of};
use crate::tenants::{Tenant, zone_of};
use crate::unpack::Usage;

/// Most facts about signatures under one name of an image, and of those that earlier builds look for.
const MAX_FACTS: usize = 256;

/// The sources of all blobs: URLs of repositories, `https://host/name`.
pub(crate) type Sources = HashMap<Digest, BTreeSet<String>>;

/// What signatures have shown of an image, to be kept with it: a digest for each requirement and each key that has met it,
/// over the key, the requirement's identity and the image's name.
pub(crate) type Facts = BTreeSet<Digest>;

/// What was imported from a file of the preload directory. Fields are only added, with a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preloaded {
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i128,
    pub images: Vec<ImageId>,
    /// Why it was not imported; `None` if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: ImageId,
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    pub size: u64,
    /// Shared with the public form, as are its annotations.
    #[serde(with = "shared")]
    pub config: Arc<RunConfig>,
    pub program: Program,
    /// Everything in `blobs/` that the image needs.
    pub blobs: BTreeSet<Digest>,
    /// Chain ids of its layers, lowest first.
    pub chains: Vec<Digest>,
    #[serde(with = "shared")]
    pub annotations: Arc<BTreeMap<String, String>>,
    /// Removed, but a container still uses it: neither listed nor found, only leased.
    pub removed: bool,
    /// The manifest that it was made from; `None` in records of builds that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Those of its names by which an import has pinned it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pins: BTreeSet<String>,
    /// It is an artifact: its one layer has files to mount, and it runs nothing. Older builds take it for a Linux image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_artifact: bool,
    /// What pulls have verified of its signatures, by the names that they have pulled, as [`crate::signature`] writes it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proven: BTreeMap<String, Facts>,
    /// The same as earlier builds write it: a digest for each requirement, over all its keys and the name. For them, after a
    /// downgrade; and for what they have pulled, under the names that the image still has.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub verified: Facts,
    /// Those of its names by which nothing but the policy of a namespace has accepted it, instead of the node's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub of_namespace: BTreeSet<String>,
    /// Who has brought it first; `None` in records of builds that did not keep that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought_by: Option<Tenant>,
    /// What is stored only so that an export gives the image as it was received. The image works without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What an export needs besides [`Record::blobs`] to give an image as it was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The manifest, which is a blob of the store.
    pub manifest: Digest,
    /// The layers as they came; none for an artifact, whose module is needed anyway.
    #[serde(default)]
    pub layers: BTreeSet<Digest>,
}

/// What the image runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Program {
    /// A blob.
    Module { digest: Digest },
    /// A file in a layer; `file` is relative to the directory of layers.
    ModuleFile {
        digest: Digest,
        file: PathBuf,
        guest_path: String,
    },
    /// Linux programs.
    Linux,
}

/// What every record takes in memory, whatever it says: its entry, paths, and its place in a list. Bytes.
const RECORD_BYTES: u64 = 4096;
/// What a digest takes in memory. Bytes.
const DIGEST_BYTES: u64 = 128;

/// Records hold what several share as if it was their own.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

impl Record {
    /// What it takes in memory as long as the image is here, its public form included. Bytes.
    pub(crate) fn weight(&self) -> u64 {
        let names = [&self.tags, &self.digests, &self.pins, &self.of_namespace];
        let facts = self.proven.values().map(BTreeSet::len).sum::<usize>() + self.verified.len();
        let digests = self.stored().count() + self.chains.len() + facts;
        let annotations = self.annotations.keys().chain(self.annotations.values());
        RECORD_BYTES
            + self.config.weight()
            + weight_of(annotations)
            + weight_of(self.proven.keys())
            // The store has each name once more, to find it by, and so has the public form.
            + 3 * weight_of(names.into_iter().flatten())
            + digests as u64 * DIGEST_BYTES
    }

    /// In whose share it counts: whoever brought it, or else its first name's zone.
    pub(crate) fn tenant(&self) -> Tenant {
        let zone = || {
            let mut names = self.digests.iter().chain(&self.tags);
            let registry = names.next().and_then(|name| name.split('/').next());
            registry.map(|registry| Tenant::Zone(zone_of(registry)))
        };
        let known = self.brought_by.clone().or_else(zone);
        known.unwrap_or(Tenant::Operator)
    }

    /// Every blob of the store that the record names.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &Digest> {
        let kept = self.kept.iter();
        let kept = kept.flat_map(|kept| kept.layers.iter().chain([&kept.manifest]));
        self.blobs.iter().chain(kept)
    }

    /// The record of a removed image that is still leased.
    pub(crate) fn hidden(&self) -> Self {
        Self {
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            pins: BTreeSet::new(),
            of_namespace: BTreeSet::new(),
            proven: BTreeMap::new(),
            removed: true,
            ..self.clone()
        }
    }

    /// This record without the given names, if it has any of them.
    pub(crate) fn without_names(
        &self,
        tags: &BTreeSet<String>,
        digests: &BTreeSet<String>,
    ) -> Option<Self> {
        if self.tags.is_disjoint(tags) && self.digests.is_disjoint(digests) {
            return None;
        }
        let remaining = |names: &BTreeSet<String>| -> BTreeSet<String> {
            let names = names
                .iter()
                .filter(|name| !tags.contains(*name) && !digests.contains(*name));
            names.cloned().collect()
        };
        Some(Self {
            tags: self.tags.difference(tags).cloned().collect(),
            digests: self.digests.difference(digests).cloned().collect(),
            pins: remaining(&self.pins),
            of_namespace: remaining(&self.of_namespace),
            proven: {
                let names = self.proven.iter();
                let names =
                    names.filter(|(name, _)| !tags.contains(*name) && !digests.contains(*name));
                names
                    .map(|(name, facts)| (name.clone(), facts.clone()))
                    .collect()
            },
            ..self.clone()
        })
    }

    /// Takes over what another pull has verified. Under one name there are no more facts than policies of this node have
    /// keys for; when those have changed often, only the last pull's stay.
    pub(crate) fn add_proven(&mut self, new: BTreeMap<String, Facts>) {
        for (name, facts) in new {
            let known = self.proven.entry(name).or_default();
            known.extend(facts.iter().cloned());
            if known.len() > MAX_FACTS {
                *known = facts;
            }
        }
    }

    /// Takes over what earlier builds look for, as long as there is room: nobody's other names cost an image what is known.
    pub(crate) fn add_verified(&mut self, new: Facts) {
        for fact in new {
            if self.verified.len() < MAX_FACTS {
                self.verified.insert(fact);
            }
        }
    }

    /// Whether `name` is one of its names.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.tags.contains(name) || self.digests.contains(name)
    }

    /// Whether `name` is one of its names, and more than the policy of a namespace has accepted it under that.
    pub(crate) fn is_of_node(&self, name: &str) -> bool {
        self.has_name(name) && !self.of_namespace.contains(name)
    }

    /// Takes over by which policies the names of `new`, the same image, were accepted. What is of the node stays so.
    pub(crate) fn merge_acceptance(&mut self, new: &Self) {
        for name in new.tags.iter().chain(&new.digests) {
            if new.is_of_node(name) {
                self.of_namespace.remove(name);
            } else if !self.is_of_node(name) {
                self.of_namespace.insert(name.clone());
            }
        }
    }

    /// Whether one of its names fits one of `patterns`: a whole name, or the beginning of one and `*`.
    fn is_pinned_by(&self, patterns: &[String]) -> bool {
        let mut names = self.tags.iter().chain(&self.digests);
        names.any(|name| {
            patterns
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => name == pattern,
                })
        })
    }

    /// Whether it is WebAssembly.
    pub(crate) fn is_wasm(&self) -> bool {
        !matches!(self.program, Program::Linux)
    }

    /// Whether this and `other` are the WebAssembly and the Linux entry of one index.
    pub(crate) fn is_other_entry(&self, other: &Self) -> bool {
        self.is_wasm() != other.is_wasm() && !self.digests.is_disjoint(&other.digests)
    }

    /// Whether one of its names is of its manifest itself, or none is known to be of an index.
    pub(crate) fn is_without_index(&self) -> bool {
        let Some(manifest) = &self.manifest else {
            return true;
        };
        let mut digests = self.digests.iter();
        self.digests.is_empty() || digests.any(|name| name.ends_with(manifest.as_str()))
    }

    /// The public form.
    pub(crate) fn image(&self, blobs: &Blobs, pinned: &[String]) -> Image {
        let layers: Vec<PathBuf> = self.chains.iter().map(|chain| blobs.layer(chain)).collect();
        let wasm = |module: &Digest, module_path, guest_path| {
            let (module, working_dir) = (module.clone(), self.config.working_dir.clone());
            Kind::Wasm(WasmImage {
                module,
                module_path,
                layers: layers.clone(),
                guest_path,
                working_dir,
            })
        };
        let kind = match &self.program {
            Program::Module { digest } => wasm(digest, blobs.blob(digest), None),
            Program::ModuleFile {
                digest,
                file,
                guest_path,
            } => wasm(digest, blobs.layers().join(file), Some(guest_path.clone())),
            Program::Linux if self.is_artifact => Kind::Artifact(Artifact { layers }),
            Program::Linux => Kind::Linux(LinuxImage { layers }),
        };
        Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            user: Some(self.config.user.clone()).filter(|user| !user.is_empty()),
            config: self.config.clone(),
            kind,
            pinned: !self.pins.is_empty() || self.is_pinned_by(pinned),
            spec_annotations: self.annotations.clone(),
        }
    }
}

/// One unpacked layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The blob it was unpacked from.
    pub blob: Digest,
    pub bytes: u64,
    pub inodes: u64,
    /// Stands for its tree as it was then; `None` in records of builds that did not keep it, and for artifacts, whose files
    /// are blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<u64>,
}

impl LayerRecord {
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            bytes: self.bytes,
            inodes: self.inodes,
        }
    }
}
