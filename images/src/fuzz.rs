//! Fuzz targets of this crate: each reads one hostile input and panics where an invariant is broken.
//!
//! Called by: the `fuzz` binary of the shim, and the tests below, which replay the corpora of `images/fuzz` with every
//! `make test`. Built only for those two; no release has it. docs/security/fuzzing.md lists the invariants.
//! Invariant: a target touches nothing but a directory of its own, and gives the same verdict each time.

mod layer;

use std::collections::BTreeSet;

use crate::config::Limits;
use crate::image_config::{chain_ids, parse_config};
use crate::manifest::{self, Content, Document, PlatformPreference};
use crate::mirrors;
use crate::record::Record;
use crate::reference::{Digest, ImageId, ImageRef, Target};

/// A target: its name, and what reads one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[
    ("image-reference", image_reference),
    ("manifest", read_manifest),
    ("image-config", image_config),
    ("hosts-toml", hosts_toml),
    ("image-record", image_record),
    ("tar", layer::tar),
    ("layer", layer::layer),
    ("challenge", crate::endpoint::challenge),
];

/// An accepted reference survives a round trip, and is no path.
fn image_reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(reference) = text.parse::<ImageRef>() {
        let printed = reference.to_string();
        assert_eq!(printed.parse(), Ok(reference.clone()), "{printed}");
        let (registry, repository) = (reference.registry(), reference.repository());
        assert!(registry.len() + repository.len() < 256, "{printed}");
        assert!(
            repository
                .split('/')
                .all(|part| !matches!(part, "" | "." | ".."))
        );
        assert!(
            !registry.contains('/') && !registry.starts_with('.'),
            "{registry}"
        );
        assert!(
            printed.bytes().all(|byte| byte.is_ascii_graphic()),
            "{printed}"
        );
        if let Target::Tag(tag) = reference.target() {
            assert!((1..=128).contains(&tag.len()), "{tag}");
        }
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
        assert_eq!(digest.hex().len(), 64);
    }
    if let Ok(id) = text.parse::<ImageId>() {
        assert!(id.as_str().ends_with(text), "{id}");
    }
}

/// An accepted manifest or index is within the limits.
fn read_manifest(input: &[u8]) {
    let limits = Limits::default();
    match manifest::parse("fuzz", input, &limits) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Document::Index(entries)) => {
            for preference in [
                PlatformPreference::WasmThenLinux,
                PlatformPreference::Wasm,
                PlatformPreference::Linux,
            ] {
                if let Ok(chosen) = manifest::choose("fuzz", &entries, preference) {
                    assert!(chosen.size <= limits.max_manifest_bytes);
                }
            }
        }
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.config.size <= limits.max_manifest_bytes);
            match manifest.content {
                Content::Module(module) => assert!(module.size <= limits.max_module_bytes),
                Content::Archives(layers) => {
                    assert!(layers.len() as u64 <= limits.max_layers);
                    assert!(
                        layers
                            .iter()
                            .all(|layer| layer.size <= limits.max_layer_bytes)
                    );
                }
                Content::Files(files) => {
                    assert!(!files.is_empty() && files.len() as u64 <= limits.max_layers);
                    let names = |file: &crate::manifest::ArtifactFile| {
                        let mut names = file.path.split('/');
                        !names.any(|name| matches!(name, "" | "." | ".."))
                    };
                    assert!(files.iter().all(names));
                }
            }
        }
    }
}

/// A config has one diff id a layer, and a bounded amount of what goes into every container. The first byte says how
/// many layers the manifest had.
fn image_config(input: &[u8]) {
    let Some((count, json)) = input.split_first() else {
        return;
    };
    let (limits, layers) = (Limits::default(), usize::from(count % 4));
    let Ok(config) = parse_config("fuzz", json, layers, &limits) else {
        return;
    };
    let chain = chain_ids(&config.diff_ids);
    assert_eq!((config.diff_ids.len(), chain.len()), (layers, layers));
    let distinct: BTreeSet<_> = chain.iter().collect();
    assert_eq!(distinct.len(), layers, "two stacks of layers have one name");
    assert!(config.run.weight() <= limits.max_run_config_bytes);
    assert!(config.run.user.len() <= 512 && config.run.working_dir.len() <= 4096);
}

/// An accepted file lists hosts, the registry's own last.
fn hosts_toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(upstreams) = mirrors::of_text(text, "registry.example:5000") else {
        return;
    };
    assert!(!upstreams.is_empty());
    for upstream in upstreams {
        let odd =
            |letter: char| letter.is_control() || matches!(letter, '/' | '@' | ' ' | '?' | '#');
        let authority = &upstream.authority;
        assert!(
            !authority.is_empty() && !authority.contains(odd),
            "{authority:?}"
        );
        let api = &upstream.api;
        let is_path = api.is_empty() || api.starts_with('/') && !api.ends_with('/');
        assert!(is_path && !api.contains(['?', '#']), "{api:?}");
    }
}

/// A record of the metadata database survives a round trip.
fn image_record(input: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(input) else {
        return;
    };
    let written = serde_json::to_vec(&record).expect("a record is JSON");
    let again: Record = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(
        written,
        serde_json::to_vec(&again).expect("a record is JSON")
    );
}

#[cfg(test)]
#[path = "../../runtime/fuzz/replay.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod replay;
