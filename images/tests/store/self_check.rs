//! Stored content that is no longer what was stored: its images are dropped by name, and nothing else is.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use coracle_images::{Digest, ErrorKind, Image, ImageId, Images, Kind};

use serde_json::json;

use super::{GZIP, content, linux, open, pull, wasm};
use crate::support::{MODULE, Parts, Registry, Scratch, tar};

/// What is done to a stored image.
type Damage<'a> = &'a dyn Fn(&Image);

/// Changes one byte of a file.
fn flip(path: &Path) {
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.rewind().unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

fn layer(image: &Image) -> &Path {
    match &image.kind {
        Kind::Linux(linux) => &linux.layers[0],
        Kind::Wasm(_) | Kind::Artifact(_) => panic!("{} is no Linux image", image.id),
    }
}

fn names(images: &Images) -> Vec<String> {
    let listed = images.list();
    let mut names: Vec<String> = listed
        .iter()
        .flat_map(|one| one.repo_tags.clone())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn images_whose_content_has_changed_are_dropped_and_can_be_pulled_again() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let name = |tag: &str| format!("{}/app:{tag}", registry.host);
    let images = open(&scratch.0).await;
    let blob = scratch.0.join("images/blobs/sha256");
    let artifact = |tag: &str| Parts::artifact(&[MODULE, tag.as_bytes()].concat());
    let in_layer = Parts::archives(
        "wasi",
        "wasm",
        json!({}),
        &[(GZIP, tar(&[("in-layer.wasm", MODULE)]))],
    );
    let damaged: [(&str, Parts, Damage<'_>); 7] = [
        ("in-layer", in_layer, &|image| {
            flip(&wasm(image).module_path)
        }),
        ("module", artifact("module"), &|image| {
            flip(&wasm(image).module_path)
        }),
        ("config", linux("config"), &|_| {
            flip(&blob.join(Digest::of(&linux("config").config.1).hex()));
        }),
        ("cut", linux("cut"), &|image| {
            fs::write(layer(image).join("bin/app"), "").unwrap();
        }),
        ("gone", linux("gone"), &|image| {
            fs::remove_file(layer(image).join("bin/app")).unwrap();
        }),
        ("more", linux("more"), &|image| {
            fs::write(layer(image).join("bin/sh"), "x").unwrap();
        }),
        ("owner", linux("owner"), &|image| {
            let file = layer(image).join("bin/app");
            std::os::unix::fs::chown(file, Some(5), None).unwrap();
        }),
    ];
    for (tag, parts) in [("whole", linux("whole")), ("well", artifact("well"))] {
        registry.image("app", tag, &parts).await;
        pull(&images, &name(tag)).await.unwrap();
    }
    let (intact, used) = (names(&images), images.fs_info());
    assert_eq!(images.check_content().await.unwrap(), []);
    let mut broken: Vec<ImageId> = Vec::new();
    for (tag, parts, damage) in &damaged {
        registry.image("app", tag, parts).await;
        let image = pull(&images, &name(tag)).await.unwrap();
        damage(&image);
        broken.push(image.id.clone());
    }
    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(images.list().len(), 9, "a start waits for no check");
    let mut dropped = images.check_content().await.unwrap();
    broken.sort();
    dropped.sort();
    assert_eq!(dropped, broken);
    assert_eq!(names(&images), intact);
    assert_eq!(images.fs_info(), used);
    assert_eq!(images.check_content().await.unwrap(), []);
    for (tag, _, _) in &damaged {
        let image = pull(&images, &name(tag)).await.unwrap();
        if let Kind::Linux(_) = &image.kind {
            let file = fs::read(layer(&image).join("bin/app")).unwrap();
            assert_eq!(file, tag.as_bytes());
        }
    }
    assert_eq!(images.check_content().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_was_interrupted_goes_on_where_it_was() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let store = scratch.0.join("images");
    let mut ids = Vec::new();
    for tag in ["config", "layer"] {
        let parts = linux(tag);
        registry.image("app", tag, &parts).await;
        let name = format!("{}/app:{tag}", registry.host);
        let image = pull(&images, &name).await.unwrap();
        ids.push(image.id.clone());
        match tag {
            "config" => flip(
                &store
                    .join("blobs/sha256")
                    .join(Digest::of(&parts.config.1).hex()),
            ),
            _ => fs::write(layer(&image).join("bin/app"), "").unwrap(),
        }
    }
    // Blobs come before layers.
    fs::write(store.join("checked"), "layer").unwrap();
    assert_eq!(images.check_content().await.unwrap(), [ids[1].clone()]);
    assert_eq!(fs::read(store.join("checked")).unwrap(), b"");
    let pause = images.pause_before_check().await.unwrap();
    assert!(pause > Duration::from_secs(80_000), "{pause:?}");
    assert_eq!(images.check_content().await.unwrap(), [ids[0].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_content_in_use_stays_for_its_containers_and_is_given_to_no_other() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let name = format!("{}/app:v1", registry.host);
    registry.image("app", "v1", &linux("used")).await;
    let image = pull(&images, &name).await.unwrap();
    images.lease(&image.id, "container").unwrap();
    let file = layer(&image).join("bin/app");
    fs::write(&file, "changed").unwrap();
    let dropped = images.check_content().await.unwrap();
    assert_eq!(dropped, std::slice::from_ref(&image.id));
    assert!(images.list().is_empty() && images.resolve(&name).is_none());
    images.collect(Duration::ZERO).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"changed", "its container runs");
    let refused = pull(&images, &name).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    let text = refused.beneath().unwrap().to_string();
    let says = "it is not what was unpacked, and stays as long as containers use it";
    assert!(text.contains(says), "{text}");
    assert!(images.list().is_empty());
    images.release("container");
    images.collect(Duration::ZERO).await.unwrap();
    assert!(content(&scratch.0).is_empty(), "{:?}", content(&scratch.0));
    pull(&images, &name).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"used");
}
