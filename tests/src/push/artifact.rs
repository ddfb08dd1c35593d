//! OCI artifacts that are no images: files with titles, as `oras push` makes them.

use serde_json::{Value, json};

use super::{OCI_MANIFEST, Pushed, descriptor, push_blob, push_manifest};
use crate::Outcome;

/// Pushes an artifact of these files, each with its title. Errors: the registry is gone or refuses.
pub fn push(host: &str, repository: &str, tag: &str, files: &[(&str, &[u8])]) -> Outcome<Pushed> {
    let mut layers: Vec<Value> = Vec::new();
    for (title, bytes) in files {
        push_blob(host, repository, bytes)?;
        let mut layer = descriptor("application/octet-stream", bytes);
        layer["annotations"] = json!({"org.opencontainers.image.title": title});
        layers.push(layer);
    }
    push_blob(host, repository, b"{}")?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.model",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": layers,
    });
    push_manifest(
        host,
        repository,
        tag,
        (OCI_MANIFEST, manifest.to_string().as_bytes()),
    )
}
