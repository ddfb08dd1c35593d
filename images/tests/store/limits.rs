//! Limits of all images together.

use std::sync::Arc;

use coracle_images::{ErrorKind, Images, ImagesConfig};
use serde_json::json;

use super::{GZIP, native, pull};
use crate::support::{Parts, Registry, Scratch, Unpackers, tar};

/// A Linux image with labels of `bytes`.
fn labelled(salt: &str, bytes: usize) -> Parts {
    let config = json!({"Cmd": ["/bin/app"], "Labels": {"a": "x".repeat(bytes)}});
    let layer = tar(&[("bin/app", salt.as_bytes())]);
    Parts::archives("linux", native(), config, &[(GZIP, layer)])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_texts_of_all_images_are_bounded_at_the_cost_of_unused_images_with_the_most() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.limits.max_metadata_bytes = 420 << 10;
    config.pinned = vec![format!("{}/pinned*", registry.host)];
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let name = |repository: &str| format!("{}/{repository}:v1", registry.host);
    for (repository, bytes) in [
        ("small", 1 << 10),
        ("used", 100 << 10),
        ("pinned", 100 << 10),
        ("large0", 80 << 10),
        ("large1", 90 << 10),
        ("large2", 80 << 10),
        ("ordinary", 20 << 10),
        ("wide", 150 << 10),
        ("huge", 300 << 10),
    ] {
        let parts = labelled(repository, bytes);
        registry.image(repository, "v1", &parts).await;
    }
    let pulled = async |repository: &str| pull(&images, &name(repository)).await;
    let is_here = |repository: &str| images.resolve(&name(repository)).is_some();
    let used = pulled("used").await.unwrap();
    images.lease(&used.id, "container").unwrap();
    for repository in ["small", "pinned", "large0", "large1"] {
        pulled(repository).await.unwrap();
    }
    // Of what nobody uses, the image with the most text goes.
    pulled("large2").await.unwrap();
    assert!(!is_here("large1"));
    pulled("ordinary").await.unwrap();
    for kept in ["small", "used", "pinned", "large0", "large2"] {
        assert!(is_here(kept), "{kept}");
    }
    // When all have less text than the new one, those with the most of it make room.
    pulled("wide").await.unwrap();
    for gone in ["large0", "large2"] {
        assert!(!is_here(gone), "{gone}");
    }
    for kept in ["small", "used", "pinned", "ordinary", "wide"] {
        assert!(is_here(kept), "{kept}");
    }
    // What is in use or pinned does not, and then nothing else goes for nothing.
    let refused = pulled("huge").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Limit);
    let text = refused.to_string();
    assert!(
        text.contains("images.max_metadata_bytes (430080)"),
        "{text}"
    );
    assert_eq!(images.list().len(), 5);
    // The removed one is pulled again when it is needed.
    pulled("large1").await.unwrap();
    assert!(is_here("large1"));
}
