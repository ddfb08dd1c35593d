//! Images as files: OCI layouts and docker-archives, as `skopeo`, `buildah` and `docker save` write them.
//!
//! Like [`super`], which builds the images, it shares no code with the product.

use serde_json::{Value, json};

use super::{Image, descriptor, digest};
use crate::Outcome;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A tar of an OCI layout with these images, each under its whole name.
pub fn oci(images: &[(&str, &Image)]) -> Outcome<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut entries: Vec<Value> = Vec::new();
    for (name, image) in images {
        let manifest = image.manifest();
        for blob in image.blobs().iter().chain([&manifest]) {
            add(&mut tar, &format!("blobs/sha256/{}", hex(blob)), blob)?;
        }
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    add(&mut tar, "index.json", index.as_bytes())?;
    Ok(tar.into_inner()?)
}

/// A docker-archive of one image, whose layers are as they are in the registry.
pub fn docker(name: &str, image: &Image) -> Outcome<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let config = image.config.to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    add(&mut tar, &config_name, config.as_bytes())?;
    let mut layers = Vec::new();
    for (_, bytes) in &image.layers {
        let path = format!("{}/layer.tar", hex(bytes));
        add(&mut tar, &path, bytes)?;
        layers.push(path);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": layers}]);
    add(&mut tar, "manifest.json", manifest.to_string().as_bytes())?;
    Ok(tar.into_inner()?)
}

fn hex(bytes: &[u8]) -> String {
    digest(bytes).trim_start_matches("sha256:").to_owned()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) -> Outcome<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}
