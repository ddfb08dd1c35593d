//! Pulls that break off: resumed where they were, within a deadline.

use std::sync::Arc;
use std::time::Duration;

use coracle_images::{Digest, ErrorKind, Images, ImagesConfig};

use super::{open, pull};
use crate::support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, Unpackers, noise};

const MIB: usize = 1 << 20;

/// A registry with one artifact, and the module in it.
async fn serving(length: usize) -> (ScriptedRegistry, Vec<u8>, String) {
    let registry = ScriptedRegistry::start().await;
    let module = [MODULE, &noise(7, length)].concat();
    registry.serve_image("app", "v1", &Parts::artifact(&module));
    let path = format!("/app/blobs/{}", Digest::of(&module));
    (registry, module, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_breaks_off_again_and_again_is_resumed() {
    let (registry, module, path) = serving(7 * MIB).await;
    registry.on(&path, Reply::Breaks(module.clone(), 3 * MIB / 2));
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let image = pull(&images, &format!("{}/app:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(super::wasm(&image).module, Digest::of(&module));
    let ranges = registry
        .heads()
        .iter()
        .filter(|head| head.to_ascii_lowercase().contains("range: bytes="))
        .count();
    assert_eq!(
        (registry.gets(&path), ranges),
        (5, 4),
        "more was transferred than was missing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_resumes_wrongly_gives_no_image() {
    for swapped in [false, true] {
        let (registry, module, path) = serving(2 * MIB).await;
        let mut other = module.clone();
        other[2 * MIB - 1] ^= 1;
        let first = Reply::Breaks(module.clone(), 3 * MIB / 2);
        // Another rest than the one that was begun, or a registry that knows no ranges.
        let then = match swapped {
            true => Reply::Breaks(other, usize::MAX),
            false => Reply::ok(&module),
        };
        registry.on(&path, Reply::turns(vec![first, then]));
        let scratch = Scratch::new();
        let images = open(&scratch.0).await;
        let pulled = pull(&images, &format!("{}/app:v1", registry.host)).await;
        match swapped {
            true => assert_eq!(pulled.unwrap_err().kind(), ErrorKind::Corrupt),
            false => assert_eq!(super::wasm(&pulled.unwrap()).module, Digest::of(&module)),
        }
        assert_eq!(images.list().len(), usize::from(!swapped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_at_its_deadline() {
    let (registry, module, path) = serving(MIB).await;
    registry.on(&path, Reply::Drips(module, Duration::from_millis(2)));
    let scratch = Scratch::new();
    let mut config = ImagesConfig::new(&scratch.0);
    (config.pull_timeout, config.pull_min_bytes_per_s) = (Some(Duration::from_millis(500)), 0);
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let late = pull(&images, &format!("{}/app:v1", registry.host))
        .await
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::RegistryUnavailable);
    assert!(late.to_string().contains("images.pull_timeout_s"), "{late}");
    assert!(images.list().is_empty());
}
