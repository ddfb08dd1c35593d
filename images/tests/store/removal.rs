//! What is deleted, and when: removed images, leases, the content that a killed daemon left.

use std::path::PathBuf;
use std::time::Duration;

use coracle_images::{Digest, ErrorKind};
use serde_json::json;

use super::{GZIP, content, open, pull, wasm};
use crate::support::{MODULE, Parts, Registry, Reply, Scratch, ScriptedRegistry, tar};

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_all_names_and_spares_what_is_leased() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let shared = tar(&[("shared", b"s")]);
    let with = |name: &str| {
        let own = tar(&[(name, MODULE)]);
        Parts::archives(
            "wasi",
            "wasm",
            json!({"Cmd": [format!("/{name}")]}),
            &[(GZIP, shared.clone()), (GZIP, own)],
        )
    };
    let (one, two) = (with("one.wasm"), with("two.wasm"));
    for (repository, tag, parts) in [("a", "x", &one), ("b", "y", &one), ("c", "z", &two)] {
        registry.image(repository, tag, parts).await;
        pull(&images, &format!("{}/{repository}:{tag}", registry.host))
            .await
            .unwrap();
    }
    assert_eq!(images.list().len(), 2);
    let first = images.resolve(&one.id()).unwrap();
    assert_eq!(first.repo_tags.len(), 2);
    images.lease(&first.id, "container-1").unwrap();

    let removed = images
        .remove(&format!("{}/a:x", registry.host))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(removed.id, first.id);
    assert!(
        images.resolve(&format!("{}/b:y", registry.host)).is_none(),
        "all names go"
    );
    assert!(images.resolve(first.id.as_str()).is_none());
    assert_eq!(images.list().len(), 1);
    assert!(
        images
            .remove(&format!("{}/a:x", registry.host))
            .await
            .unwrap()
            .is_none(),
        "removing twice is fine"
    );
    images.collect(Duration::ZERO).await.unwrap();
    assert!(
        wasm(&first).module_path.exists(),
        "a container may still start it"
    );

    // A restart forgets leases, but not what they are needed for, until they had a chance to be declared again.
    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(images.list().len(), 1);
    images.lease(&first.id, "container-1").unwrap();
    images.collect(Duration::ZERO).await.unwrap();
    assert!(wasm(&first).module_path.exists());
    assert_eq!(images.leased(&first.id).unwrap().kind, first.kind);

    images.release("container-1");
    images.collect(Duration::ZERO).await.unwrap();
    assert!(!wasm(&first).module_path.exists());
    let second = images.resolve(&two.id()).unwrap();
    assert!(
        wasm(&second).layers.iter().all(|layer| layer.is_dir()),
        "a shared layer stays"
    );
    assert_eq!(
        images.lease(&first.id, "late").unwrap_err().kind(),
        ErrorKind::Missing
    );

    images.remove(second.id.as_str()).await.unwrap().unwrap();
    assert_eq!(content(&scratch.0), Vec::<PathBuf>::new());
    assert_eq!(
        (images.fs_info().used_bytes, images.fs_info().inodes_used),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_content_of_a_dead_daemon_is_swept() {
    let scratch = Scratch::new();
    drop(open(&scratch.0).await);
    let images = scratch.0.join("images");
    std::fs::write(images.join("tmp/7"), "half a blob").unwrap();
    std::fs::create_dir_all(images.join("tmp/8/etc")).unwrap();
    std::fs::create_dir(images.join("layers").join(Digest::of(b"chain").hex())).unwrap();
    std::fs::write(
        images.join("blobs/sha256").join(Digest::of(b"blob").hex()),
        "blob",
    )
    .unwrap();
    let store = open(&scratch.0).await;
    assert_eq!(
        content(&scratch.0).len(),
        2,
        "whole content stays until its users had a chance to claim it"
    );
    let kept = store.collect(Duration::from_secs(600)).await.unwrap();
    assert!(kept.left_young);
    assert_eq!(
        content(&scratch.0).len(),
        1,
        "only the young blob stays, for a pull to use"
    );
    assert_eq!(store.fs_info().used_bytes, 4);
    store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(
        (content(&scratch.0).len(), store.fs_info().used_bytes),
        (0, 0)
    );
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(images).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

/// The old image and the new one share a layer, which the pull finds in the store.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_while_it_is_pulled_again_is_whole_afterwards() {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let name = format!("{}/app:v1", registry.host);
    let shared = tar(&[("shared", b"s")]);
    let with = |file: &str| {
        let own = tar(&[(file, MODULE)]);
        let config = json!({"Cmd": [format!("/{file}")]});
        let layers = [(GZIP, shared.clone()), (GZIP, own)];
        Parts::archives("wasi", "wasm", config, &layers)
    };
    registry.serve_image("app", "v1", &with("one.wasm"));
    let old = pull(&images, &name).await.unwrap();
    let next = with("two.wasm");
    registry.serve_image("app", "v1", &next);
    let own = next.layers[1].1.clone();
    let digest = Digest::of(&own);
    let slowly = Reply::Drips(own, Duration::from_millis(20));
    registry.on(&format!("/app/blobs/{digest}"), slowly);
    let pulling = tokio::spawn({
        let (images, name) = (images.clone(), name.clone());
        async move { pull(&images, &name).await }
    });
    while registry.gets(digest.as_str()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let removed = images.remove(&name).await.unwrap().unwrap();
    assert_eq!(removed.id, old.id);
    assert!(images.remove(&name).await.unwrap().is_none());
    assert!(!pulling.is_finished() && images.list().is_empty());
    images.collect(Duration::ZERO).await.unwrap();
    let new = pulling.await.unwrap().unwrap();
    images.collect(Duration::ZERO).await.unwrap();
    assert_eq!(images.resolve(&name).unwrap().id, new.id);
    let layers = &wasm(&new).layers;
    assert_eq!(std::fs::read(layers[0].join("shared")).unwrap(), b"s");
    assert!(layers[1].join("two.wasm").exists());
}
