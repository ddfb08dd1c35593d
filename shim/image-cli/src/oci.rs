//! What OCI calls things: digests, descriptors, manifests.
//!
//! Called by: whoever makes, reads or sends images. Pure. Must not know: where they go.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media type of manifests.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image in memory.
pub(crate) struct Packed {
    pub(crate) manifest: Vec<u8>,
    /// Config and layer.
    pub(crate) blobs: Vec<Vec<u8>>,
}

/// `sha256:` and the hex digits of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    shown(&Sha256::digest(bytes))
}

/// A digest as it is written.
pub(crate) fn shown(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

/// How a manifest or an index names a blob.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}
