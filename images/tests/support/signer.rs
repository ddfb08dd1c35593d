//! Keys, and signatures as cosign writes them, made with the openssl command: nothing of the product is used.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_images::Digest;
use serde_json::{Value, json};

use super::Scratch;
use super::image::OCI_MANIFEST;

pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const STATEMENT: &str = "application/vnd.in-toto+json";

/// A key pair.
pub struct Signer {
    scratch: Scratch,
    is_ed25519: bool,
}

impl Signer {
    /// Makes a key: `P-256`, `P-384`, `ed25519` or `rsa`.
    pub fn new(kind: &str) -> Self {
        let signer = Self {
            scratch: Scratch::new(),
            is_ed25519: kind == "ed25519",
        };
        let curve = format!("ec_paramgen_curve:{kind}");
        let algorithm: &[&str] = match kind {
            "ed25519" => &["ed25519"],
            "rsa" => &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            _ => &["EC", "-pkeyopt", &curve],
        };
        let private = signer.file("key");
        openssl(&[&["genpkey", "-out", &private, "-algorithm"], algorithm].concat());
        let public = signer.file("pub");
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        signer
    }

    /// The file of the public key.
    pub fn public(&self) -> PathBuf {
        self.file("pub").into()
    }

    fn file(&self, name: &str) -> String {
        self.scratch.0.join(name).to_str().unwrap().to_owned()
    }

    /// Signs some bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let (key, input, output) = (
            self.file("key"),
            self.file("message"),
            self.file("signature"),
        );
        std::fs::write(&input, message).unwrap();
        match self.is_ed25519 {
            true => openssl(&[
                "pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &input, "-out", &output,
            ]),
            false => openssl(&["dgst", "-sha256", "-sign", &key, "-out", &output, &input]),
        }
        std::fs::read(&output).unwrap()
    }

    /// A payload of simple signing and the layer that holds it, but for its digest and size.
    pub fn simple(&self, digest: &Digest, name: &str) -> (Vec<u8>, Value) {
        self.simple_with(&payload(digest, name))
    }

    /// The same for a payload that is made otherwise.
    pub fn simple_with(&self, payload: &Value) -> (Vec<u8>, Value) {
        let payload = payload.to_string().into_bytes();
        let signature = STANDARD.encode(self.sign(&payload));
        (
            payload,
            json!({"dev.cosignproject.cosign/signature": signature}),
        )
    }

    /// A bundle as cosign 3 writes it: a signed statement about `digest`.
    pub fn bundle(&self, digest: &Digest, name: Option<&str>) -> Vec<u8> {
        let mut subject = json!({"digest": {"sha256": digest.hex()}, "annotations": {}});
        if let Some(name) = name {
            subject["name"] = name.into();
        }
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1", "subject": [subject],
            "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {},
        });
        let statement = statement.to_string();
        let message = format!(
            "DSSEv1 {} {STATEMENT} {} {statement}",
            STATEMENT.len(),
            statement.len()
        );
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "aGludA=="}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&statement), "payloadType": STATEMENT,
                "signatures": [{"sig": STANDARD.encode(self.sign(message.as_bytes()))}],
            },
        });
        bundle.to_string().into_bytes()
    }
}

/// What cosign signs.
pub fn payload(digest: &Digest, name: &str) -> Value {
    json!({"critical": {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest.as_str()},
        "type": "cosign container image signature",
    }, "optional": null})
}

/// A layer of a signature's manifest.
pub fn layer(media_type: &str, blob: &[u8], annotations: Value) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(blob).as_str(), "size": blob.len(),
           "annotations": annotations})
}

/// The manifest of signatures; `kind` makes it an artifact that refers to `subject`.
pub fn signature_manifest(layers: &[Value], artifact: Option<(&str, &Digest)>) -> Value {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
        "config": {"mediaType": EMPTY, "digest": Digest::of(b"{}").as_str(), "size": 2},
    });
    if let Some((kind, subject)) = artifact {
        manifest["artifactType"] = kind.into();
        manifest["subject"] =
            json!({"mediaType": OCI_MANIFEST, "digest": subject.as_str(), "size": 1});
    }
    manifest
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).output();
    let done = done.expect("openssl (Debian package of that name) starts");
    assert!(
        done.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
