//! Reads manifests and indexes: untrusted JSON in, checked values out. Pure.
//!
//! Place in the flow: between [`crate::registry`], which delivers bytes of a known digest, and the pull,
//! which fetches what is named here.
//! Invariants: every [`Blob`] has a sha256 digest and a size within the limits; a document that could be read
//! as both an index and a manifest is refused, so that no two tools see two images in it.
//! Not here: network, disk, archives; which entry of an index is chosen ([`platform`]).

mod artifact;
mod platform;

use std::collections::{BTreeMap, HashMap};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::Limits;
use crate::error::Error;
use crate::reference::Digest;
use crate::run_config::{TEXT_BYTES, weight_of};

pub(crate) use artifact::ArtifactFile;
pub use platform::PlatformPreference;
#[cfg(test)]
pub(crate) use platform::native_architecture;
pub(crate) use platform::{Platform, choose};

/// What a manifest request accepts, in order of preference.
pub(crate) const ACCEPTED: [&str; 4] = [
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    "application/vnd.docker.distribution.manifest.v2+json",
];
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The configs of images. The last is what early clients wrote.
const IMAGE_CONFIGS: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
const WASM_CONFIGS: [&str; 2] = [
    "application/vnd.wasm.config.v0+json",
    "application/vnd.wasm.config.v1+json",
];
const WASM_LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// One blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
}

/// One entry of an index.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub blob: Blob,
    /// `os/architecture[/variant]`, lower case; `None` if the entry states none.
    pub platform: Option<Platform>,
    /// Its annotations: in the index of an archive they name the image.
    pub annotations: HashMap<String, String>,
}

/// A manifest or an index.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Entry>),
    Manifest(Manifest),
}

/// A manifest whose layers are all of one sort.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub config: Blob,
    pub content: Content,
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The size of config and layers, as it states them. Bytes.
    pub(crate) fn size(&self) -> u64 {
        let blobs: Vec<&Blob> = match &self.content {
            Content::Module(module) => vec![module],
            Content::Archives(layers) => layers.iter().collect(),
            Content::Files(files) => files.iter().map(|file| &file.blob).collect(),
        };
        let sizes = blobs.iter().map(|blob| blob.size);
        sizes.fold(self.config.size, u64::saturating_add)
    }
}

/// The layers of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// One layer that is the module itself.
    Module(Blob),
    /// Archives, lowest first.
    Archives(Vec<Blob>),
    /// Files as they are, of an artifact that is no image. Never empty.
    Files(Vec<ArtifactFile>),
}

/// The parts of a document that decide what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Shape {
    fn is_index(&self) -> bool {
        self.manifests.is_some()
    }

    /// Errors: it is of another schema, could be read as two kinds of documents, or has the media type of another one.
    fn check(&self, what: &str) -> Result<(), Error> {
        if self.schema_version != 2 {
            let version = self.schema_version;
            let problem = format!("schemaVersion is {version}, only 2 is supported");
            return Err(Error::invalid(what, problem));
        }
        if self.fs_layers.is_some() {
            let problem = "it has the fsLayers of schema 1 beside what schema 2 has";
            return Err(Error::invalid(what, problem));
        }
        if self.is_index() && (self.layers.is_some() || self.config.is_some()) {
            return Err(Error::invalid(what, "it is both an index and a manifest"));
        }
        if let Some(media_type) = &self.media_type
            && (!ACCEPTED.contains(&media_type.as_str())
                || self.is_index() != is_index_type(media_type))
        {
            let problem = format!("its mediaType {media_type:?} does not fit its content");
            return Err(Error::invalid(what, problem));
        }
        Ok(())
    }

    /// Errors: it was sent as a type of manifests that does not fit it.
    fn check_sent(&self, what: &str, sent_as: Option<&str>) -> Result<(), Error> {
        // Other types, such as application/json, are what plain file servers send, and say nothing.
        let Some(sent) = sent_as.filter(|sent| is_manifest_type(sent)) else {
            return Ok(());
        };
        let is_index = self.is_index();
        let (fits, own) = match &self.media_type {
            Some(own) => (own == sent, own.as_str()),
            None => (
                ACCEPTED.contains(&sent) && is_index == is_index_type(sent),
                if is_index { "an index" } else { "a manifest" },
            ),
        };
        if fits {
            return Ok(());
        }
        let problem = format!("it was sent as {sent:?}, and is {own}");
        Err(Error::invalid(what, problem))
    }
}

/// Reads a manifest or an index. `what` names it in errors.
pub(crate) fn parse(what: &str, bytes: &[u8], limits: &Limits) -> Result<Document, Error> {
    parse_sent(what, bytes, None, limits)
}

/// The same for a document that was sent as media type `sent_as`, which must fit what it says of itself.
pub(crate) fn parse_sent(
    what: &str,
    bytes: &[u8],
    sent_as: Option<&str>,
    limits: &Limits,
) -> Result<Document, Error> {
    let shape: Shape = json(what, bytes)?;
    shape.check(what)?;
    shape.check_sent(what, sent_as)?;
    if shape.is_index() {
        parse_index(what, bytes, limits)
    } else {
        parse_manifest(what, bytes, limits)
    }
}

fn parse_index(what: &str, bytes: &[u8], limits: &Limits) -> Result<Document, Error> {
    let index: ImageIndex = json(what, bytes)?;
    let mut entries = Vec::with_capacity(index.manifests().len());
    for descriptor in index.manifests() {
        let platform = descriptor.platform().as_ref().map(|platform| Platform {
            os: platform.os().to_string().to_ascii_lowercase(),
            architecture: platform.architecture().to_string().to_ascii_lowercase(),
            variant: platform.variant().clone(),
        });
        // Entries of other digest algorithms are not for us; the index may still hold one that is.
        let Ok(blob) = blob(
            what,
            descriptor,
            limits.max_manifest_bytes,
            "max_manifest_bytes",
        ) else {
            continue;
        };
        entries.push(Entry {
            blob,
            platform,
            annotations: descriptor.annotations().clone().unwrap_or_default(),
        });
    }
    Ok(Document::Index(entries))
}

fn parse_manifest(what: &str, bytes: &[u8], limits: &Limits) -> Result<Document, Error> {
    let manifest: ImageManifest = json(what, bytes)?;
    let count = manifest.layers().len() as u64;
    if count > limits.max_layers {
        return Err(Error::Limit {
            what: format!("{what} with {count} layers"),
            limit: "max_layers",
            allowed: limits.max_layers,
        });
    }
    let config = blob(
        what,
        manifest.config(),
        limits.max_manifest_bytes,
        "max_manifest_bytes",
    )?;
    let layers = manifest
        .layers()
        .iter()
        .map(|layer| blob(what, layer, limits.max_layer_bytes, "max_layer_bytes"))
        .collect::<Result<Vec<_>, _>>()?;
    let annotations = annotations(what, &manifest, limits)?;
    let content = match classify(what, &config, layers, limits)? {
        Content::Archives(layers) if !IMAGE_CONFIGS.contains(&config.media_type.as_str()) => {
            let titles = manifest.layers().iter().map(title);
            Content::Files(artifact::files(
                what,
                layers.into_iter().zip(titles),
                limits,
            )?)
        }
        other => other,
    };
    let manifest = Manifest {
        config,
        content,
        annotations,
    };
    check_total(what, manifest, limits).map(Document::Manifest)
}

/// Errors: config and layers take more than may be unpacked of them: nothing is fetched then.
fn check_total(what: &str, manifest: Manifest, limits: &Limits) -> Result<Manifest, Error> {
    let bytes = manifest.size();
    if bytes <= limits.max_unpacked_bytes {
        return Ok(manifest);
    }
    Err(Error::Limit {
        what: format!("{what} with a config and layers of {bytes} bytes"),
        limit: "max_unpacked_bytes",
        allowed: limits.max_unpacked_bytes,
    })
}

/// The name that a layer gives its file.
fn title(layer: &Descriptor) -> Option<String> {
    layer.annotations().as_ref()?.get(artifact::TITLE).cloned()
}

/// The annotations, which are kept in memory as long as the image is here. Errors: Limit.
fn annotations(
    what: &str,
    manifest: &ImageManifest,
    limits: &Limits,
) -> Result<BTreeMap<String, String>, Error> {
    let given = manifest.annotations().iter().flatten();
    let annotations: BTreeMap<_, _> = given.map(|(k, v)| (k.clone(), v.clone())).collect();
    let bytes = weight_of(annotations.keys().chain(annotations.values()));
    if bytes > limits.max_run_config_bytes {
        return Err(Error::Limit {
            what: format!(
                "{what} with {bytes} bytes of annotations, {TEXT_BYTES} for each text besides its own"
            ),
            limit: "max_run_config_bytes",
            allowed: limits.max_run_config_bytes,
        });
    }
    Ok(annotations)
}

/// Tells a Wasm artifact from everything else, which counts as archives here.
fn classify(
    what: &str,
    config: &Blob,
    layers: Vec<Blob>,
    limits: &Limits,
) -> Result<Content, Error> {
    let modules = layers
        .iter()
        .filter(|layer| WASM_LAYERS.contains(&layer.media_type.as_str()))
        .count();
    if modules == 0 && !WASM_CONFIGS.contains(&config.media_type.as_str()) {
        return Ok(Content::Archives(layers));
    }
    match <[Blob; 1]>::try_from(layers) {
        Ok([module]) if modules == 1 && module.size > limits.max_module_bytes => {
            Err(Error::Limit {
                what: format!("module of {} bytes", module.size),
                limit: "max_module_bytes",
                allowed: limits.max_module_bytes,
            })
        }
        Ok([module]) if modules == 1 => Ok(Content::Module(module)),
        Ok([other]) => Err(Error::invalid(
            what,
            format!(
                "a WebAssembly artifact holds one application/wasm layer, this one holds 0 (a {:?})",
                other.media_type
            ),
        )),
        Err(layers) => Err(Error::invalid(what, not_one_module(modules, layers.len()))),
    }
}

/// Why an artifact of these layers is refused. The specification of the CNCF, "Wasm OCI Artifact layout", asks for it: several
/// layers, a component and those that it imports, are for a later version of the format.
fn not_one_module(modules: usize, layers: usize) -> String {
    let advice = match modules {
        0 | 1 => "",
        _ => {
            "; its specification has consumers reject a component that comes with its dependencies in layers of their own: compose them into one before the push, with `coracle pack --plug`"
        }
    };
    format!(
        "a WebAssembly artifact holds one application/wasm layer and nothing else, this one holds {modules} among {layers} layers{advice}"
    )
}

fn blob(what: &str, descriptor: &Descriptor, max: u64, limit: &'static str) -> Result<Blob, Error> {
    let digest: Digest =
        descriptor.digest().to_string().parse().map_err(|source| {
            Error::invalid(what, format!("a descriptor is unusable: {source}"))
        })?;
    if descriptor.size() > max {
        return Err(Error::Limit {
            what: format!("blob {digest} of {} bytes", descriptor.size()),
            limit,
            allowed: max,
        });
    }
    Ok(Blob {
        digest,
        size: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
    })
}

/// Whether it is a type of manifests or indexes, schema 1 included.
fn is_manifest_type(media_type: &str) -> bool {
    ACCEPTED.contains(&media_type)
        || media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

fn is_index_type(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

pub(crate) fn json<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|source| Error::invalid(what, format!("not readable as JSON: {source}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::{Value, json};

    fn entry(platform: Option<(&str, &str)>, media_type: &str, name: &str) -> Value {
        let mut entry = json!({"mediaType": media_type, "digest": Digest::of(name.as_bytes()).as_str(), "size": 10});
        if let Some((os, architecture)) = platform {
            entry["platform"] = json!({"os": os, "architecture": architecture});
        }
        entry
    }

    fn chosen(entries: Vec<Value>, preference: PlatformPreference) -> Result<Digest, Error> {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match parse("index", index.as_bytes(), &Limits::default()).unwrap() {
            Document::Index(entries) => {
                choose("index", &entries, preference).map(|blob| blob.digest)
            }
            Document::Manifest(_) => panic!("an index was read as a manifest"),
        }
    }

    #[test]
    fn the_index_entry_for_this_node_is_chosen() {
        use PlatformPreference::{Linux, Wasm, WasmThenLinux};
        let native = native_architecture();
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let mixed = || {
            vec![
                entry(Some(("windows", "amd64")), docker, "windows"),
                entry(Some(("unknown", "unknown")), OCI_MANIFEST, "attestation"),
                entry(Some(("linux", "s390x")), OCI_MANIFEST, "foreign"),
                entry(Some(("linux", native)), docker, "native"),
                entry(Some(("wasi", "wasm")), OCI_MANIFEST, "wasm"),
                entry(Some(("wasip2", "wasm")), OCI_MANIFEST, "later"),
            ]
        };
        let named = |name: &str| Digest::of(name.as_bytes());
        assert_eq!(chosen(mixed(), WasmThenLinux).unwrap(), named("wasm"));
        assert_eq!(chosen(mixed(), Wasm).unwrap(), named("wasm"));
        assert_eq!(chosen(mixed(), Linux).unwrap(), named("native"));
        let no_wasm = || mixed().into_iter().take(4).collect::<Vec<_>>();
        assert_eq!(chosen(no_wasm(), WasmThenLinux).unwrap(), named("native"));
        let refused = chosen(no_wasm(), Wasm).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(
            refused
                .to_string()
                .contains("windows/amd64, unknown/unknown, linux/s390x"),
            "{refused}"
        );
        let nested = vec![
            entry(Some(("linux", "s390x")), OCI_MANIFEST, "foreign"),
            entry(None, OCI_INDEX, "nested"),
        ];
        assert_eq!(chosen(nested, WasmThenLinux).unwrap(), named("nested"));
        assert_eq!(
            chosen(vec![entry(None, OCI_MANIFEST, "only")], WasmThenLinux).unwrap(),
            named("only")
        );
        assert!(chosen(vec![], WasmThenLinux).is_err());
    }

    fn manifest_with(config: &str, layers: &[&str]) -> Result<Manifest, Error> {
        let layers: Vec<Value> = layers
            .iter()
            .map(|media_type| entry(None, media_type, media_type))
            .collect();
        let manifest =
            json!({"schemaVersion": 2, "config": entry(None, config, "config"), "layers": layers});
        parse(
            "manifest",
            manifest.to_string().as_bytes(),
            &Limits::default(),
        )
        .map(|document| match document {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => panic!("a manifest was read as an index"),
        })
    }

    #[test]
    fn artifacts_hold_exactly_one_module() {
        let config = WASM_CONFIGS[0];
        for layer in WASM_LAYERS {
            assert!(matches!(
                manifest_with(config, &[layer]).unwrap().content,
                Content::Module(_)
            ));
            let image = "application/vnd.oci.image.config.v1+json";
            assert!(matches!(
                manifest_with(image, &[layer]).unwrap().content,
                Content::Module(_)
            ));
        }
        let tar = "application/vnd.oci.image.layer.v1.tar";
        for (layers, says) in [
            (&[][..], "holds 0 among 0"),
            (
                &["application/wasm", "application/wasm"],
                "holds 2 among 2 layers; its specification has consumers reject",
            ),
            (&["application/wasm", tar], "holds 1 among 2"),
            (
                &[tar],
                "holds 0 (a \"application/vnd.oci.image.layer.v1.tar\")",
            ),
        ] {
            let refused = manifest_with(config, layers).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid);
            assert!(
                refused.to_string().contains(says),
                "{refused} does not say {says}"
            );
        }
    }

    #[test]
    fn layers_that_are_too_large_together_are_refused_before_they_are_fetched() {
        const GIB: u64 = 1 << 30;
        let of = |sizes: &[u64]| {
            let sized = |(at, size): (usize, &u64)| {
                let mut layer = entry(
                    None,
                    "application/vnd.oci.image.layer.v1.tar",
                    &at.to_string(),
                );
                layer["size"] = json!(size);
                layer
            };
            let layers: Vec<Value> = sizes.iter().enumerate().map(sized).collect();
            let config = entry(None, IMAGE_CONFIGS[0], "config");
            let text = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
            parse("manifest", text.as_bytes(), &Limits::default())
        };
        of(&[8 * GIB, 8 * GIB, 8 * GIB, 7 * GIB]).unwrap();
        let refused = of(&[8 * GIB; 8]).unwrap_err();
        assert_eq!(refused.kind(), Kind::Limit);
        assert!(
            refused.to_string().contains("max_unpacked_bytes"),
            "{refused}"
        );
    }

    #[test]
    fn what_a_document_was_sent_as_must_fit_what_it_is() {
        const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let docker = ACCEPTED[3];
        let config = entry(None, "application/vnd.oci.image.config.v1+json", "config");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
        let index = json!({"schemaVersion": 2, "manifests": []});
        let typed = |mut document: Value, media_type: &str| {
            document["mediaType"] = media_type.into();
            document
        };
        let read = |document: &Value, sent_as: &str| {
            let bytes = document.to_string();
            parse_sent("it", bytes.as_bytes(), Some(sent_as), &Limits::default()).map(drop)
        };
        for (document, sent_as) in [
            (manifest.clone(), OCI_MANIFEST),
            (manifest.clone(), docker),
            (typed(manifest.clone(), OCI_MANIFEST), OCI_MANIFEST),
            (
                typed(manifest.clone(), OCI_MANIFEST),
                "application/octet-stream",
            ),
            (index.clone(), DOCKER_LIST),
        ] {
            read(&document, sent_as).unwrap();
        }
        let with_both = |mut document: Value| {
            document["fsLayers"] = json!([]);
            document
        };
        for (document, sent_as) in [
            (manifest.clone(), OCI_INDEX),
            (manifest.clone(), SCHEMA_1),
            (index.clone(), OCI_MANIFEST),
            (typed(manifest.clone(), docker), OCI_MANIFEST),
            (typed(index.clone(), OCI_INDEX), DOCKER_LIST),
            (with_both(manifest), OCI_MANIFEST),
            (json!({"schemaVersion": 1, "fsLayers": []}), SCHEMA_1),
        ] {
            let refused = read(&document, sent_as).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid, "{document} as {sent_as}");
        }
    }

    #[test]
    fn unreadable_documents_are_refused() {
        let digest = Digest::of(b"x");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let good = json!({"mediaType": OCI_MANIFEST, "digest": digest.as_str(), "size": 1});
        for (bytes, kind) in [
            (b"".to_vec(), Kind::Invalid),
            (b"{}".to_vec(), Kind::Invalid),
            (b"\xff\xfe".to_vec(), Kind::Invalid),
            (deep.into_bytes(), Kind::Invalid),
            (json!({"schemaVersion": 1, "manifests": []}).to_string().into_bytes(), Kind::Invalid),
            (json!({"schemaVersion": 2, "manifests": [], "layers": []}).to_string().into_bytes(), Kind::Invalid),
            (json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}).to_string().into_bytes(), Kind::Invalid),
            (br#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.to_vec(), Kind::Invalid),
            (
                json!({"schemaVersion": 2, "config": {"mediaType": "x", "digest": digest.as_str(), "size": -1}, "layers": []})
                    .to_string()
                    .into_bytes(),
                Kind::Invalid,
            ),
            (
                json!({"schemaVersion": 2, "config": good, "layers": vec![good.clone(); 10_000]}).to_string().into_bytes(),
                Kind::Limit,
            ),
        ] {
            let refused = parse("m", &bytes, &Limits::default()).unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
        }
    }
}
