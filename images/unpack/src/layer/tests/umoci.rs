//! The odd archives as layers of images that umoci unpacks: a third reader, on Go's `archive/tar`, as containerd and CRI-O are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::gnu_tar::{listing, odd_archives};
use super::*;

/// Writes an OCI layout with an image of this layer alone.
fn image_of(layer: &[u8], layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let describe = |kind: &str, bytes: &[u8]| -> Value {
        let digest = format!("{:x}", Sha256::digest(bytes));
        fs::write(blobs.join(&digest), bytes).unwrap();
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layer = describe("layer.v1.tar", layer);
    let config = json!({
        "created": "2026-01-02T03:04:05Z", "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = describe("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut manifest = describe("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion": "1.0.0"}"#,
    )
    .unwrap();
}

/// Unpacks an image as root does. Errors: what umoci says.
fn by_umoci(layer: &[u8], scratch: &Path) -> Result<PathBuf, String> {
    let (layout, bundle) = (scratch.join("oci"), scratch.join("bundle"));
    image_of(layer, &layout);
    let output = Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:v1", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(bundle.join("rootfs")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Archives that umoci 0.4 refuses, or takes for something else than GNU tar does.
const OTHERWISE: [&str; 4] = [
    // It knows entries of neither of these kinds.
    "a global header",
    "a contiguous file",
    // Both end the name of a file in a slash, which makes a directory of it.
    "a PAX name whose header is cut",
    "a directory of old",
];

#[test]
fn odd_archives_become_the_trees_that_umoci_makes() {
    let began = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let began = i64::try_from(began).unwrap() - 60;
    let (mut same, mut differences) = (0, Vec::new());
    let archives = odd_archives().into_iter().enumerate();
    for (number, (what, archive)) in archives.filter(|(_, (what, _))| !OTHERWISE.contains(what)) {
        let scratch = Scratch::new(&format!("umoci-{number}"));
        let unpacked = scratch.unpack_as(&archive, Compression::None, BOUNDS);
        unpacked.unwrap_or_else(|verdict| panic!("{what}: {verdict:?}"));
        let root = by_umoci(&archive, &scratch.0);
        let root = root.unwrap_or_else(|error| panic!("{what}: {error}"));
        let (ours, mut theirs) = (listing(&scratch.layer(), began), listing(&root, began));
        // Without an entry for it, umoci sets the time of the root to that of the epoch.
        let (own, root) = (&ours[&Vec::new()], theirs.get_mut(&Vec::new()).unwrap());
        if own.time.is_none() {
            root.time = None;
        }
        match ours == theirs {
            true => same += 1,
            false => differences.push(format!("{what}: {ours:?}, umoci has {theirs:?}")),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(same >= 20, "{same}");
}
