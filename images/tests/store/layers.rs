//! Layers are unpacked while others arrive, and what a pull that ends early has brought is of use to the next one, unless a power
//! failure has cut it.

use std::fs;
use std::time::Duration;

use coracle_images::{Digest, ErrorKind, Kind};
use serde_json::json;

use super::{GZIP, native, open, pull};
use crate::support::{Parts, Reply, Scratch, ScriptedRegistry, noise, tar};

/// A Linux image of two layers, each with one file.
fn two_layers() -> Parts {
    let layer = |name: &str| {
        let bytes = noise(name.len() as u64, 1 << 20);
        (GZIP, tar(&[(name, &bytes)]))
    };
    let layers = [layer("bin/a"), layer("bin/other")];
    Parts::archives("linux", native(), json!({"Cmd": ["/bin/a"]}), &layers)
}

/// A registry that has it, the image, and the paths of its layers.
async fn serving() -> (ScriptedRegistry, Parts, [String; 2]) {
    let (registry, parts) = (ScriptedRegistry::start().await, two_layers());
    registry.serve_image("app", "v1", &parts);
    let path = |layer: usize| format!("/app/blobs/{}", Digest::of(&parts.layers[layer].1));
    let paths = [path(0), path(1)];
    (registry, parts, paths)
}

fn broken() -> Reply {
    Reply::Full(503, vec![], b"{}".to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_unpacked_while_the_next_one_arrives() {
    let (registry, parts, [_, second]) = serving().await;
    registry.on(&second, Reply::Stalls(parts.layers[1].1.clone(), 1000));
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let reference = format!("{}/app:v1", registry.host);
    let watch = async {
        loop {
            let transfers = images.transfers(&reference);
            if transfers.iter().any(|one| one.unpacked_layers == 1) {
                return transfers[0].layers;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let layers = tokio::select! {
        layers = watch => layers,
        pulled = pull(&images, &reference) => panic!("{pulled:?}"),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it waits for the second layer"),
    };
    assert_eq!(layers, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_unpacked_before_a_fetch_failed_is_stored() {
    let (registry, parts, [first, second]) = serving().await;
    let scratch = Scratch::new();
    let reference = format!("{}/app:v1", registry.host);
    registry.on(&second, broken());
    let images = open(&scratch.0).await;
    let failed = pull(&images, &reference).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::RegistryUnavailable, "{failed}");
    assert!(images.list().is_empty());
    let stored = |folder: &str| {
        fs::read_dir(scratch.0.join("images").join(folder))
            .unwrap()
            .count()
    };
    assert_eq!(stored("layers"), 1);
    assert_eq!(
        stored("blobs/sha256"),
        1,
        "the config; no archive that is unpacked"
    );
    registry.serve_image("app", "v1", &parts);
    pull(&images, &reference).await.unwrap();
    assert_eq!(
        images.transfer_counts().unpacked_layers,
        2,
        "none of them twice"
    );
    assert_eq!(stored("layers"), 2);
    assert!(registry.gets(&first) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_no_record_names_is_used_after_a_start_only_if_it_is_whole() {
    for is_cut in [false, true] {
        let (registry, parts, [first, _]) = serving().await;
        let scratch = Scratch::new();
        let reference = format!("{}/app:v1", registry.host);
        registry.on(&first, broken());
        let images = open(&scratch.0).await;
        pull(&images, &reference).await.unwrap_err();
        drop(images);
        let blob = Digest::of(&parts.layers[1].1);
        let path = scratch.0.join("images/blobs/sha256").join(blob.hex());
        assert!(path.is_file(), "it waits for the first one");
        if is_cut {
            // As long as it was, and nothing in it.
            fs::write(&path, vec![0; parts.layers[1].1.len()]).unwrap();
        }
        registry.serve_image("app", "v1", &parts);
        let images = open(&scratch.0).await;
        let image = pull(&images, &reference).await.unwrap();
        let Kind::Linux(linux) = &image.kind else {
            panic!("{} is no Linux image", image.id);
        };
        let file = linux
            .layers
            .iter()
            .find_map(|layer| fs::read(layer.join("bin/other")).ok());
        assert!(file.unwrap() == noise(9, 1 << 20));
        assert!(!path.exists(), "it is unpacked");
    }
}
