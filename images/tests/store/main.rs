//! The promises of the image store, each against a real registry or a scripted one.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

#[path = "../support/mod.rs"]
mod support;

mod artifacts;
mod cosign;
mod export;
mod failure;
mod hosts_toml;
mod import;
mod kinds;
mod layers;
mod limits;
mod messages;
mod platforms;
mod preload;
mod proxy;
mod pulls;
mod removal;
mod resume;
mod self_check;
mod signature_bounds;
mod signature_namespaces;
mod signatures;
mod transfers;
mod trees;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::{Error, Image, Images, ImagesConfig, Kind, PullRequest, WasmImage};
use serde_json::json;
use support::{Parts, Unpackers, tar};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// This machine's architecture, as images name it.
fn native() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// A Linux image for this machine, another for each `salt`.
fn linux(salt: &str) -> Parts {
    let layer = tar(&[("bin/app", salt.as_bytes())]);
    Parts::archives(
        "linux",
        native(),
        json!({"Cmd": ["/bin/app"]}),
        &[(GZIP, layer)],
    )
}

async fn open(root: &Path) -> Images {
    let mut config = ImagesConfig::new(root);
    config.pull_idle_timeout = Duration::from_secs(60);
    Images::open(config, Arc::new(Unpackers)).await.unwrap()
}

async fn pull(images: &Images, reference: &str) -> Result<Arc<Image>, Error> {
    images.pull(PullRequest::new(reference)).await
}

fn wasm(image: &Image) -> &WasmImage {
    match &image.kind {
        Kind::Wasm(wasm) => wasm,
        Kind::Linux(_) | Kind::Artifact(_) => panic!("{} is no Wasm image", image.id),
    }
}

/// Every file and directory of the store but the database, without its fixed directories, once what is being removed is
/// gone: that takes a thread which may wait for the disk.
fn content(root: &Path) -> Vec<PathBuf> {
    let begun = Instant::now();
    let is_empty = || std::fs::read_dir(root.join("images/tmp")).unwrap().count() == 0;
    while !is_empty() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    content_now(root)
}

fn content_now(root: &Path) -> Vec<PathBuf> {
    let images = root.join("images");
    let in_one = |name: &str| {
        std::fs::read_dir(images.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    ["blobs/sha256", "layers", "tmp"]
        .iter()
        .flat_map(|name| in_one(name))
        .collect()
}
