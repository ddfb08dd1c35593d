//! Builds OCI images in memory and pushes them to a registry: Wasm artifacts, `wasi/wasm` images, Linux images, indexes.
//!
//! It shares no code with the product and follows the OCI image and distribution specs and the CNCF Wasm artifact layout, so
//! that mistakes in the product's parsers show.

pub mod archive;
pub mod artifact;
pub mod signature;

use std::io::Write;
use std::sync::Mutex;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Outcome, http};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const WASM_LAYER: &str = "application/wasm";

/// How the tar of a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `application/vnd.oci.image.layer.v1.tar`
    Plain,
    /// the same with `+gzip`
    Gzip,
    /// the same with `+zstd`
    Zstd,
}

/// A file of a layer.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its path below the root, without a leading slash.
    pub path: &'a str,
    /// Its permission bits.
    pub mode: u32,
    /// Its content.
    pub bytes: &'a [u8],
}

/// Shorthand for a [`File`].
pub fn file<'a>(path: &'a str, mode: u32, bytes: &'a [u8]) -> File<'a> {
    File { path, mode, bytes }
}

/// An image that is not pushed yet: blobs and the manifest that names them.
#[derive(Clone, Debug)]
pub struct Image {
    config_type: &'static str,
    /// The config, to be changed at will before the push.
    pub config: Value,
    /// Media type and content of each layer, bottom first.
    pub layers: Vec<(String, Vec<u8>)>,
}

/// What a push left in the registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `host/repository:tag`
    pub reference: String,
    /// `host/repository@sha256:...` of the manifest or index.
    pub by_digest: String,
    /// `sha256:...` of the manifest or index.
    pub digest: String,
}

impl Image {
    /// The CNCF artifact: one module or component as the only layer.
    pub fn artifact(module: &[u8]) -> Self {
        let os = if module.get(4..8) == Some(&[0x0d, 0, 1, 0]) {
            "wasip2"
        } else {
            "wasip1"
        };
        let config = json!({
            "created": "2026-01-02T03:04:05Z", "architecture": "wasm", "os": os,
            "layerDigests": [digest(module)],
        });
        Self {
            config_type: WASM_CONFIG,
            config,
            layers: vec![(WASM_LAYER.into(), module.to_vec())],
        }
    }

    /// A `wasi/wasm` image with one tar layer. `entrypoint` is the first argument list of the config.
    pub fn wasi(files: &[File<'_>], packing: Packing, entrypoint: &[&str]) -> Outcome<Self> {
        Self::with_layer(("wasi", "wasm"), files, packing, entrypoint)
    }

    /// An image for the machine's own Linux, with one gzip layer.
    pub fn linux(files: &[File<'_>], entrypoint: &[&str]) -> Outcome<Self> {
        Self::with_layer(("linux", "amd64"), files, Packing::Gzip, entrypoint)
    }

    fn with_layer(
        platform: (&str, &str),
        files: &[File<'_>],
        packing: Packing,
        entrypoint: &[&str],
    ) -> Outcome<Self> {
        let tar = tar_of(files)?;
        let config = json!({
            "created": "2026-01-02T03:04:05Z", "os": platform.0, "architecture": platform.1,
            "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin", "FROM_IMAGE=yes"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&tar)]},
        });
        let (suffix, bytes) = match packing {
            Packing::Plain => ("", tar),
            Packing::Gzip => ("+gzip", gzip(&tar)?),
            Packing::Zstd => ("+zstd", zstd::bulk::compress(&tar, 3)?),
        };
        let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        Ok(Self {
            config_type: OCI_CONFIG,
            config,
            layers: vec![(kind, bytes)],
        })
    }

    /// Adds another tar layer on top (gzip).
    pub fn add_layer(&mut self, files: &[File<'_>]) -> Outcome<()> {
        self.add_tar(&tar_of(files)?)
    }

    /// Adds a layer that is a tar archive already (gzip).
    pub fn add_tar(&mut self, tar: &[u8]) -> Outcome<()> {
        if let Some(ids) = self
            .config
            .pointer_mut("/rootfs/diff_ids")
            .and_then(Value::as_array_mut)
        {
            ids.push(digest(tar).into());
        }
        self.layers.push((
            "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            gzip(tar)?,
        ));
        Ok(())
    }

    /// The manifest as it is pushed.
    pub fn manifest(&self) -> Vec<u8> {
        let config = self.config.to_string();
        let describe = |(kind, bytes): &(String, Vec<u8>)| descriptor(kind, bytes);
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(self.config_type, config.as_bytes()),
            "layers": self.layers.iter().map(describe).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes()
    }

    /// Every blob the manifest names: the config, then the layers.
    pub fn blobs(&self) -> Vec<Vec<u8>> {
        let config = self.config.to_string().into_bytes();
        std::iter::once(config)
            .chain(self.layers.iter().map(|(_, bytes)| bytes.clone()))
            .collect()
    }

    /// Pushes blobs and manifest. Errors: the registry is gone or refuses.
    pub fn push(&self, host: &str, repository: &str, tag: &str) -> Outcome<Pushed> {
        // docker-registry refuses the second of two uploads of one blob that overlap (DIGEST_INVALID).
        static UPLOADS: Mutex<()> = Mutex::new(());
        let _one_at_a_time = UPLOADS.lock();
        for blob in self.blobs() {
            push_blob(host, repository, &blob)?;
        }
        push_manifest(host, repository, tag, (OCI_MANIFEST, &self.manifest()))
    }
}

/// Pushes an index of several images, each with its `(os, architecture)`.
pub fn push_index(
    host: &str,
    repository: &str,
    tag: &str,
    images: &[(&str, &str, &Image)],
) -> Outcome<Pushed> {
    let mut entries = Vec::new();
    for (os, architecture, image) in images {
        let pushed = image.push(host, repository, &format!("{tag}-{os}-{architecture}"))?;
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest());
        debug_assert_eq!(entry["digest"], pushed.digest.as_str());
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    push_manifest(host, repository, tag, (OCI_INDEX, index.as_bytes()))
}

/// `sha256:` and the hex digits of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold(String::from("sha256:"), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

/// How a manifest or an index names a blob.
pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

/// Uploads a blob unless the registry has it.
pub(crate) fn push_blob(host: &str, repository: &str, blob: &[u8]) -> Outcome<()> {
    let name = digest(blob);
    if http::request(
        host,
        "HEAD",
        &format!("/v2/{repository}/blobs/{name}"),
        None,
    )?
    .status
        == 200
    {
        return Ok(());
    }
    let begun = http::request(
        host,
        "POST",
        &format!("/v2/{repository}/blobs/uploads/"),
        None,
    )?;
    let location = begun
        .header("location")
        .ok_or("the registry gave no upload location")?;
    let path = location
        .strip_prefix(&format!("http://{host}"))
        .unwrap_or(location);
    let separator = if path.contains('?') { '&' } else { '?' };
    let put = format!("{path}{separator}digest={name}");
    let done = http::request(host, "PUT", &put, Some(("application/octet-stream", blob)))?;
    expect_created(&done, &name)
}

/// Uploads a manifest or an index, given with its media type, under a tag.
pub(crate) fn push_manifest(
    host: &str,
    repository: &str,
    tag: &str,
    content: (&str, &[u8]),
) -> Outcome<Pushed> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    expect_created(&http::request(host, "PUT", &path, Some(content))?, &path)?;
    let digest = digest(content.1);
    Ok(Pushed {
        reference: format!("{host}/{repository}:{tag}"),
        by_digest: format!("{host}/{repository}@{digest}"),
        digest,
    })
}

fn expect_created(reply: &http::Reply, what: &str) -> Outcome<()> {
    if reply.status == 201 {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&reply.body);
    Err(format!(
        "push {what}: the registry answers {}, wanted 201: {body}",
        reply.status
    )
    .into())
}

fn tar_of(files: &[File<'_>]) -> Outcome<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.bytes.len() as u64);
        header.set_mode(file.mode);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, file.path, file.bytes)?;
    }
    Ok(tar.into_inner()?)
}

/// Packs bytes as gzip does, always alike.
pub(crate) fn gzip(bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn what_is_pushed_can_be_read_back_by_digest() {
        let registry = Registry::start().unwrap();
        let image = Image::wasi(
            &[file("bin/a.wasm", 0o755, b"\0asm")],
            Packing::Zstd,
            &["/bin/a.wasm"],
        )
        .unwrap();
        let pushed = image.push(registry.host(), "some/name", "v1").unwrap();
        let path = format!("/v2/some/name/manifests/{}", pushed.digest);
        assert_eq!(
            http::request(registry.host(), "GET", &path, None)
                .unwrap()
                .body,
            image.manifest()
        );
        let index = push_index(
            registry.host(),
            "some/name",
            "all",
            &[("wasi", "wasm", &image)],
        )
        .unwrap();
        assert_ne!(index.digest, pushed.digest);
    }
}
