//! docker-archives: `manifest.json` names a config and layers for each image, by file. There is no manifest of the
//! image specification in them, so one is made, in memory.
//!
//! Called by: [`super::Archive::find`]. Invariants: each file is hashed once, however often it is named; the numbers of
//! images, names and layers are checked before. Not here: verification (a layer's diff id is checked when it is unpacked).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use coracle_unpack::Compression;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Archive, Found, MAX_NAMES};
use crate::config::Limits;
use crate::error::Error;
use crate::manifest::{OCI_MANIFEST, json as parse_json};
use crate::reference::{Digest, ImageRef, Target};
use crate::unpack::compression_of;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// Most images of an archive.
const MAX_IMAGES: u64 = 256;
/// Most layers of all images of an archive, in multiples of the most of one image: images of one archive share layers.
const LAYERS_FACTOR: u64 = 4;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The descriptors of files, by inode.
type Hashed = HashMap<u64, (Digest, u64, Compression)>;

/// The images of a docker-archive: those that have tags, or the only one, named `reference`. Makes their manifests.
pub(super) fn find(
    archive: &mut Archive,
    reference: Option<&ImageRef>,
    limits: &Limits,
) -> Result<Vec<Found>, Error> {
    let Some(bytes) = archive.read("manifest.json", limits.max_manifest_bytes)? else {
        let problem = "it has neither an index.json nor a manifest.json with named images";
        return Err(Error::invalid(archive.name.clone(), problem));
    };
    let what = format!("manifest.json of {}", archive.name);
    let items: Vec<Item> = parse_json(&what, &bytes)?;
    check_counts(&what, &items, limits)?;
    if reference.is_some() && items.len() != 1 {
        let problem = format!("it holds {} images; --ref names one", items.len());
        return Err(Error::invalid(archive.name.clone(), problem));
    }
    let (mut hashed, mut found) = (Hashed::new(), Vec::new());
    for item in &items {
        let references = match reference {
            Some(reference) => vec![reference.clone()],
            None => tags(item)?,
        };
        if references.is_empty() {
            continue;
        }
        let digest = make_manifest(archive, item, &mut hashed, limits)?;
        found.push(Found {
            digest,
            references,
            has_digest: false,
        });
    }
    Ok(found)
}

/// Errors: what the manifests and records of these images would hold together is more than the file itself justifies.
fn check_counts(what: &str, items: &[Item], limits: &Limits) -> Result<(), Error> {
    let names = items.iter().flat_map(|item| &item.repo_tags);
    let names: usize = names.map(Vec::len).sum();
    let layers: usize = items.iter().map(|item| item.layers.len()).sum();
    let most_layers = limits.max_layers.saturating_mul(LAYERS_FACTOR);
    for (count, object, limit, allowed) in [
        (items.len(), "images", "of images in an archive", MAX_IMAGES),
        (names, "names", "of names in an archive", MAX_NAMES),
        (layers, "layers", "of layers in an archive", most_layers),
    ] {
        if count as u64 > allowed {
            return Err(Error::Limit {
                what: format!("{what} with {count} {object}"),
                limit,
                allowed,
            });
        }
    }
    Ok(())
}

/// The tags of an image; a name by digest would not be that of the manifest that is made here.
fn tags(item: &Item) -> Result<Vec<ImageRef>, Error> {
    let names = item.repo_tags.iter().flatten();
    let names: Vec<ImageRef> = names
        .map(|name| name.parse::<ImageRef>())
        .collect::<Result<_, _>>()?;
    let is_tag = |name: &ImageRef| matches!(name.target(), Target::Tag(_));
    Ok(names.into_iter().filter(is_tag).collect())
}

/// Makes the manifest of an image and returns its digest.
fn make_manifest(
    archive: &mut Archive,
    item: &Item,
    hashed: &mut Hashed,
    limits: &Limits,
) -> Result<Digest, Error> {
    let count = item.layers.len() as u64;
    if count > limits.max_layers {
        return Err(Error::Limit {
            what: format!("{} with {count} layers", archive.name),
            limit: "max_layers",
            allowed: limits.max_layers,
        });
    }
    let (digest, size, _) = hash(archive, &item.config, hashed)?;
    let config = descriptor(CONFIG, &digest, size);
    let mut layers = Vec::with_capacity(item.layers.len());
    for layer in &item.layers {
        let (digest, size, compression) = hash(archive, layer, hashed)?;
        let media_type = match compression {
            Compression::None => TAR.to_owned(),
            Compression::Gzip => format!("{TAR}+gzip"),
            Compression::Zstd => format!("{TAR}+zstd"),
        };
        layers.push(descriptor(&media_type, &digest, size));
    }
    let manifest =
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    archive.documents.insert(digest.clone(), bytes);
    Ok(digest)
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
}

/// Digest, size and compression of a file of the archive, which is found by that digest from now on.
fn hash(
    archive: &mut Archive,
    path: &str,
    hashed: &mut Hashed,
) -> Result<(Digest, u64, Compression), Error> {
    let file = archive.open_file(path)?;
    let file = file.ok_or_else(|| archive.lacks(&format!("its file {path:?}")))?;
    let failed = |error| Error::io("read", Path::new(path), error);
    let inode = file.metadata().map_err(failed)?.ino();
    if let Some(known) = hashed.get(&inode) {
        return Ok(known.clone());
    }
    let facts = digest_of(file).map_err(failed)?;
    archive.files.insert(facts.0.clone(), path.to_owned());
    hashed.insert(inode, facts.clone());
    Ok(facts)
}

fn digest_of(mut file: File) -> std::io::Result<(Digest, u64, Compression)> {
    let (mut hasher, mut size, mut first) = (Sha256::new(), 0, [0; 4]);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if size == 0 && count >= first.len() {
            first.copy_from_slice(&buffer[..4]);
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
    Ok((Digest::from_hasher(hasher), size, compression_of(first)))
}
