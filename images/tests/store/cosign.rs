//! Signatures that cosign itself has made, and a registry has kept: `../cosign` has their files. Those of the other tests
//! are made with openssl.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_images::Digest;
use serde_json::{Value, json};

use super::signatures::Node;
use crate::support::{OCI_INDEX, Reply, Scratch, ScriptedRegistry};

/// The host that was signed for.
const SIGNED_HOST: &str = "127.0.0.1:5000";
/// The annotation with the signature of a payload.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A repository as the registry had it: the documents and blobs of an image and its signature by their digests, and the tags.
#[derive(Clone)]
struct Recorded {
    name: &'static str,
    content: BTreeMap<String, Vec<u8>>,
    tags: BTreeMap<String, String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cosign")
}

impl Recorded {
    fn read(name: &'static str) -> Self {
        let dir = fixtures().join(name);
        let mut content = BTreeMap::new();
        for entry in std::fs::read_dir(dir.join("blobs")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            content.insert(Digest::of(&bytes).to_string(), bytes);
        }
        let tags = std::fs::read_to_string(dir.join("tags")).unwrap();
        let tags = tags.lines().map(|line| {
            let (tag, digest) = line.split_once(' ').unwrap();
            (tag.to_owned(), digest.to_owned())
        });
        let tags = tags.collect();
        Self {
            name,
            content,
            tags,
        }
    }

    /// The document or blob that holds this text, other than the image's own manifest.
    fn holding(&self, text: &str) -> (String, Vec<u8>) {
        let holds = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let mut found = self.content.iter().filter(|(_, bytes)| holds(bytes));
        let (digest, bytes) = found.next().unwrap();
        assert!(found.next().is_none(), "{}: {text} is twice", self.name);
        (digest.clone(), bytes.clone())
    }

    /// Puts other bytes in the place of these, and their digest wherever the old one is named, as who controls the registry
    /// would. Sizes stay.
    fn with(&self, digest: &str, bytes: &[u8]) -> Self {
        let mut changed = self.clone();
        changed.content.remove(digest);
        let new = Digest::of(bytes).to_string();
        changed.content.insert(new.clone(), bytes.to_vec());
        let tags = changed.tags.values_mut();
        tags.filter(|of| *of == digest)
            .for_each(|of| of.clone_from(&new));
        let naming = changed.content.iter().filter_map(|(holder, bytes)| {
            let text = std::str::from_utf8(bytes).ok()?;
            (text.contains(digest)).then(|| (holder.clone(), text.replace(digest, &new)))
        });
        for (holder, text) in naming.collect::<Vec<_>>() {
            changed = changed.with(&holder, text.as_bytes());
        }
        changed
    }

    /// Serves it, by the API of referrers too, if `has_api`. Returns the image's reference.
    fn serve(&self, registry: &ScriptedRegistry, has_api: bool) -> String {
        let name = self.name;
        let reply = |bytes: &[u8]| {
            let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
            let kind = document["mediaType"].as_str().unwrap_or("text/plain");
            let fields = vec![("Content-Type", kind.to_owned())];
            Reply::Full(200, fields, bytes.to_vec())
        };
        for (digest, bytes) in &self.content {
            registry.on(&format!("/{name}/blobs/{digest}"), Reply::ok(bytes));
            registry.on(&format!("/{name}/manifests/{digest}"), reply(bytes));
        }
        for (tag, digest) in &self.tags {
            let bytes = &self.content[digest];
            match tag.strip_prefix("sha256-") {
                Some(of) if has_api && !tag.ends_with(".sig") => {
                    let path = format!("/{name}/referrers/sha256:{of}");
                    let fields = vec![("Content-Type", OCI_INDEX.to_owned())];
                    registry.on(&path, Reply::Full(200, fields, bytes.clone()));
                }
                _ => registry.on(&format!("/{name}/manifests/{tag}"), reply(bytes)),
            }
        }
        format!("{}/{name}:v1", registry.host)
    }

    /// What the policy must say of names for its signature.
    fn identity(&self) -> Value {
        match self.name {
            "bundle" => json!({"type": "matchDigest"}),
            name => {
                let signed = format!("{SIGNED_HOST}/{name}");
                json!({"type": "exactRepository", "dockerRepository": signed})
            }
        }
    }

    /// The documents and blobs with each part of the signature changed at some bytes, and what was changed.
    fn forged(&self) -> Vec<(String, Self)> {
        match self.name {
            "bundle" => {
                let (digest, bundle) = self.holding("\"dsseEnvelope\"");
                let text = String::from_utf8(bundle).unwrap();
                let parsed: Value = serde_json::from_str(&text).unwrap();
                let envelope = &parsed["dsseEnvelope"];
                let parts = [&envelope["payload"], &envelope["signatures"][0]["sig"]];
                self.forged_in(&digest, &text, &parts.map(|part| part.as_str().unwrap()))
            }
            _ => {
                let (digest, payload) = self.holding("docker-manifest-digest");
                let text = String::from_utf8(payload).unwrap();
                let mut forged = self.forged_in(&digest, &text, &[&text]);
                let (digest, manifest) = self.holding(SIGNATURE);
                let text = String::from_utf8(manifest).unwrap();
                let parsed: Value = serde_json::from_str(&text).unwrap();
                let signature = parsed["layers"][0]["annotations"][SIGNATURE].as_str();
                forged.extend(self.forged_in(&digest, &text, &[signature.unwrap()]));
                forged
            }
        }
    }

    /// With each of the `parts` of a text changed at some bytes.
    fn forged_in(&self, digest: &str, text: &str, parts: &[&str]) -> Vec<(String, Self)> {
        let mut forged = Vec::new();
        for part in parts {
            let from = text.find(part).unwrap();
            for at in (from..from + part.len()).step_by(part.len().div_ceil(12)) {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] ^= 1;
                forged.push((format!("byte {at} of {text}"), self.with(digest, &bytes)));
            }
        }
        assert!(forged.len() >= 10 * parts.len(), "{}", self.name);
        forged
    }
}

fn policy(key: &Path, identity: &Value) -> Value {
    json!({"default": [{"type": "sigstoreSigned", "keyPath": key, "signedIdentity": identity}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cosign_has_signed_is_pulled() {
    let key = fixtures().join("cosign.pub");
    for name in ["tag", "referrers", "bundle"] {
        let recorded = Recorded::read(name);
        let node = Node::new(&policy(&key, &recorded.identity())).await;
        for has_api in [true, false] {
            let registry = ScriptedRegistry::start().await;
            let reference = recorded.serve(&registry, has_api);
            let pulled = node.pull(&reference).await;
            pulled.unwrap_or_else(|error| panic!("{name}, API {has_api}: {error}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cosign_has_signed_is_refused_if_a_byte_is_another() {
    let key = fixtures().join("cosign.pub");
    for name in ["tag", "referrers", "bundle"] {
        let recorded = Recorded::read(name);
        let node = Node::new(&policy(&key, &recorded.identity())).await;
        let registry = ScriptedRegistry::start().await;
        for (what, forged) in recorded.forged() {
            let reference = forged.serve(&registry, true);
            let refused = node.pull(&reference).await.map(drop);
            let refused = refused.expect_err(&format!("{name} is accepted with {what}"));
            let kind = refused.kind();
            assert_eq!(
                kind,
                coracle_images::ErrorKind::Signature,
                "{what}: {refused}"
            );
        }
        // The image itself: another one under the signed one's tags.
        let image = &recorded.tags["v1"];
        let text = std::str::from_utf8(&recorded.content[image]).unwrap();
        let mut other = recorded.clone();
        let bytes = format!("{text} ").into_bytes();
        let digest = Digest::of(&bytes);
        let (old, new) = (
            image.replace(':', "-"),
            digest.to_string().replace(':', "-"),
        );
        other.tags = other
            .tags
            .iter()
            .map(|(tag, of)| (tag.replace(&old, &new), of.clone()))
            .collect();
        other.tags.insert("v1".to_owned(), digest.to_string());
        other.content.insert(digest.to_string(), bytes);
        let reference = other.serve(&registry, true);
        node.refuses(&reference, "is for another image").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cosign_has_signed_is_refused_by_another_key_and_another_name() {
    let pem = std::fs::read_to_string(fixtures().join("cosign.pub")).unwrap();
    let scratch = Scratch::new();
    let key = scratch.0.join("key.pub");
    let recorded = Recorded::read("tag");
    let registry = ScriptedRegistry::start().await;
    let reference = recorded.serve(&registry, false);
    let body = pem.find('\n').unwrap() + 1;
    let end = body + pem[body..].find("-----").unwrap();
    for at in (body..end).filter(|at| pem.as_bytes()[*at] != b'\n') {
        let mut other = pem.clone().into_bytes();
        other[at] ^= 1;
        std::fs::write(&key, &other).unwrap();
        let node = Node::new(&policy(&key, &recorded.identity())).await;
        let refused = node.pull(&reference).await.map(drop);
        refused.expect_err(&format!("accepted with byte {at} of the key"));
    }
    std::fs::write(&key, &pem).unwrap();
    let other =
        json!({"type": "exactRepository", "dockerRepository": format!("{SIGNED_HOST}/other")});
    let node = Node::new(&policy(&key, &other)).await;
    node.refuses(&reference, "has the name").await;
    // A bundle of cosign has none.
    let recorded = Recorded::read("bundle");
    let reference = recorded.serve(&registry, true);
    let node = Node::new(&policy(&key, &json!({"type": "matchRepository"}))).await;
    node.refuses(&reference, "has no name").await;
}
