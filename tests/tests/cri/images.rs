//! The image service: names, status, list, filesystem info.

mod dead_disk;
mod disks;
mod pulls;
mod removal;
mod shares;

use std::path::Path;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};

use crate::site::{Pod, daemon, images, tool};

fn small(salt: &str) -> Image {
    let module = guests::nothing(salt).unwrap();
    Image::wasi(
        &[file("m.wasm", 0o644, &module)],
        Packing::Gzip,
        &["/m.wasm"],
    )
    .unwrap()
}

#[tokio::test]
async fn one_image_is_the_same_by_every_name() {
    let daemon = daemon().await;
    let cri = daemon.cri();
    let pushed = small("names")
        .push(images().registry.host(), "names", "v1")
        .unwrap();
    let id = cri.pull(&pushed.reference).await.unwrap();
    let by_tag = cri.image(&pushed.reference).await.unwrap().unwrap();
    assert_eq!((&by_tag.id, by_tag.size > 0), (&id, true));
    assert_eq!(by_tag.repo_tags, std::slice::from_ref(&pushed.reference));
    assert_eq!(by_tag.repo_digests, std::slice::from_ref(&pushed.by_digest));
    for name in [&id, &pushed.by_digest] {
        assert_eq!(cri.image(name).await.unwrap().unwrap(), by_tag, "{name}");
    }
    assert_eq!(cri.pull(&pushed.by_digest).await.unwrap(), id);
    assert_eq!(
        cri.image("localhost:1/never/pulled:v1").await.unwrap(),
        None
    );
    let listed = cri.list_images().await.unwrap();
    assert_eq!(listed.iter().filter(|image| image.id == id).count(), 1);
    let filter = Some(cri::ImageFilter {
        image: Some(coracle_tests::client::image(&pushed.reference)),
    });
    let filtered = cri
        .images
        .clone()
        .list_images(cri::ListImagesRequest { filter })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        filtered
            .images
            .iter()
            .map(|image| &image.id)
            .collect::<Vec<_>>(),
        [&id]
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pull_by_digest_leaves_no_tag_and_one_without_a_tag_means_latest() {
    let daemon = daemon().await;
    let cri = daemon.cri();
    let registry = images().registry.host();
    let pushed = small("digest").push(registry, "digest", "latest").unwrap();
    let id = cri.pull(&pushed.by_digest).await.unwrap();
    let image = cri.image(&id).await.unwrap().unwrap();
    assert_eq!(
        (image.repo_tags.len(), image.repo_digests),
        (0, vec![pushed.by_digest.clone()])
    );
    assert_eq!(cri.pull(&format!("{registry}/digest")).await.unwrap(), id);
    assert_eq!(
        cri.image(&id).await.unwrap().unwrap().repo_tags,
        [pushed.reference]
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_filesystem_is_reported_and_grows_with_images() {
    let daemon = daemon().await;
    let mut service = daemon.cri().images.clone();
    let mut fs_info = async || {
        service
            .image_fs_info(cri::ImageFsInfoRequest {})
            .await
            .unwrap()
            .into_inner()
    };
    let before = fs_info().await.image_filesystems.pop().unwrap();
    assert!(Path::new(&before.fs_id.unwrap().mountpoint).is_dir());
    assert!(before.timestamp > 0);
    let module = guests::nothing("big").unwrap();
    let big = [
        file("big", 0o644, &[0x5a; 3 << 20]),
        file("m.wasm", 0o644, &module),
    ];
    let image = Image::wasi(&big, Packing::Plain, &["/m.wasm"]).unwrap();
    let pushed = image.push(images().registry.host(), "big", "v1").unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let after = fs_info().await.image_filesystems.pop().unwrap();
    let grown = after.used_bytes.unwrap().value - before.used_bytes.unwrap().value;
    assert!(
        (3 << 20..16 << 20).contains(&grown),
        "3 MiB more are counted as {grown} bytes"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn images_outlive_the_daemon() {
    let mut daemon = daemon().await;
    let before = daemon.cri().list_images().await.unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(daemon.cri().list_images().await.unwrap(), before);
    let pod = Pod::run(&daemon, "again").await;
    let (status, _) = pod
        .finish(&daemon, &container("c", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}
