//! Images to push or to serve: their parts, and archives.

use std::io::Write as _;

use coracle_images::Digest;
use serde_json::{Value, json};

use super::WASM_CONFIG;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The parts of one image.
pub struct Parts {
    pub media_type: &'static str,
    pub config: (&'static str, Vec<u8>),
    pub layers: Vec<(&'static str, Vec<u8>)>,
    pub annotations: Value,
}

impl Parts {
    /// A CNCF artifact: the module is the layer.
    pub fn artifact(module: &[u8]) -> Self {
        let config = json!({"architecture": "wasm", "os": "wasip1", "layerDigests": [Digest::of(module).as_str()]});
        Self {
            media_type: OCI_MANIFEST,
            config: (WASM_CONFIG, config.to_string().into_bytes()),
            layers: vec![("application/wasm", module.to_vec())],
            annotations: json!({"org.example.note": "kept"}),
        }
    }

    /// An image of archives; `config` is the `config` object of the image config.
    pub fn archives(
        os: &str,
        architecture: &str,
        config: Value,
        tars: &[(&'static str, Vec<u8>)],
    ) -> Self {
        let diff_ids: Vec<String> = tars
            .iter()
            .map(|(_, tar)| Digest::of(tar).to_string())
            .collect();
        let config = json!({
            "os": os, "architecture": architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layers = tars
            .iter()
            .map(|(media_type, tar)| (*media_type, packed(media_type, tar)))
            .collect();
        Self {
            media_type: OCI_MANIFEST,
            config: (IMAGE_CONFIG, config.to_string().into_bytes()),
            layers,
            annotations: json!({"org.example.note": "kept"}),
        }
    }

    /// The manifest, when its descriptors are known.
    pub fn manifest(&self, config: Value, layers: Vec<Value>) -> Value {
        json!({"schemaVersion": 2, "mediaType": self.media_type, "config": config, "layers": layers,
               "annotations": self.annotations})
    }

    /// The digest of the config: the id of an image of archives.
    pub fn id(&self) -> String {
        Digest::of(&self.config.1).to_string()
    }
}

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn packed(media_type: &str, tar: &[u8]) -> Vec<u8> {
    if media_type.ends_with("gzip") {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        return encoder.finish().unwrap();
    }
    if media_type.ends_with("zstd") {
        return zstd::encode_all(tar, 1).unwrap();
    }
    tar.to_vec()
}
