//! Archives of images: OCI layouts and docker-archives, as files for a tar.

use coracle_images::Digest;
use serde_json::{Value, json};

use super::image::Parts;

pub type Files = Vec<(String, Vec<u8>)>;

/// An OCI layout. Each image comes with the annotations of its entry in the index.
pub fn oci(images: &[(Value, &Parts)]) -> Files {
    let mut files: Files = vec![(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    )];
    let mut entries = Vec::new();
    for (annotations, parts) in images {
        let config = blob(&mut files, parts.config.0, &parts.config.1);
        let layers = parts
            .layers
            .iter()
            .map(|(kind, bytes)| blob(&mut files, kind, bytes))
            .collect();
        let manifest = parts.manifest(config, layers).to_string();
        let mut entry = blob(&mut files, parts.media_type, manifest.as_bytes());
        entry["annotations"] = annotations.clone();
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files
}

/// A docker-archive of one image.
pub fn docker(tags: Value, parts: &Parts) -> Files {
    let name = Digest::of(&parts.config.1);
    let config = format!("{}.json", name.hex());
    let mut files: Files = vec![(config.clone(), parts.config.1.clone())];
    let mut layers = Vec::new();
    for (number, (_, bytes)) in parts.layers.iter().enumerate() {
        layers.push(format!("{number}/layer.tar"));
        files.push((format!("{number}/layer.tar"), bytes.clone()));
    }
    let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    files
}

/// The names of an entry, as containerd and BuildKit write them.
pub fn named(name: &str) -> Value {
    json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1"})
}

fn blob(files: &mut Files, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let path = format!("blobs/sha256/{}", digest.hex());
    if files.iter().all(|(there, _)| *there != path) {
        files.push((path, bytes.to_vec()));
    }
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
}
