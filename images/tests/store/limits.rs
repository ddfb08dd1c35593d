//! Limits of all images together.

use std::sync::Arc;

use coracle_images::{ErrorKind, Images, ImagesConfig, PullRequest};
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
    // Nobody has more than the half.
    config.limits.max_metadata_bytes = 840 << 10;
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
        text.contains("images.max_metadata_bytes (860160)"),
        "{text}"
    );
    assert_eq!(images.list().len(), 5);
    // The removed one is pulled again when it is needed.
    pulled("large1").await.unwrap();
    assert!(is_here("large1"));
}

/// As a pod of `namespace` would have it pulled.
fn request(reference: &str, namespace: &str) -> PullRequest {
    PullRequest {
        namespace: namespace.to_owned(),
        ..PullRequest::new(reference)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_namespace_with_images_in_use_ends_the_pulls_of_others() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.limits.max_metadata_bytes = 1 << 20;
    let open = || Images::open(config.clone(), Arc::new(Unpackers));
    let images = open().await.unwrap();
    let name = |repository: &str| format!("{}/{repository}:v1", registry.host);
    for (repository, bytes) in [("large", 90 << 10), ("small", 4 << 10)] {
        for number in 0..12 {
            let repository = format!("{repository}{number}");
            registry
                .image(&repository, "v1", &labelled(&repository, bytes))
                .await;
        }
    }
    let mut count = 0;
    let refused = loop {
        match images
            .pull(request(&name(&format!("large{count}")), "evil"))
            .await
        {
            Ok(image) => images
                .lease(&image.id, &format!("container{count}"))
                .unwrap(),
            Err(refused) => break refused,
        }
        count += 1;
    };
    assert_eq!((refused.kind(), count), (ErrorKind::Limit, 5));
    let text = refused.to_string();
    assert!(text.contains("namespace evil"), "{text}");
    // What is here may be pulled again, by others too, and another namespace has room.
    images.pull(request(&name("large0"), "evil")).await.unwrap();
    images
        .pull(request(&name("large0"), "honest"))
        .await
        .unwrap();
    for number in 0..4 {
        let small = name(&format!("small{number}"));
        images.pull(request(&small, "honest")).await.unwrap();
    }
    // Who has the most loses unused images first.
    images.release("container0");
    images.pull(request(&name("large5"), "evil")).await.unwrap();
    assert!(images.resolve(&name("large0")).is_none());
    assert!((0..4).all(|number| images.resolve(&name(&format!("small{number}"))).is_some()));
    // It is remembered over a restart.
    let ids: Vec<_> = images.list().iter().map(|image| image.id.clone()).collect();
    drop(images);
    let images = open().await.unwrap();
    for id in &ids {
        images.claim(id, &[], "holder");
    }
    let refused = images.pull(request(&name("large6"), "evil")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Limit);
    images
        .pull(request(&name("small8"), "honest"))
        .await
        .unwrap();
}
