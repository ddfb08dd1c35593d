//! The image service: pull, status, list, remove, filesystem info.

use std::path::Path;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::faulty_registry::{Fault, FaultyRegistry};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file, push_index};
use tonic::Code;

use crate::site::{Pod, daemon, images, refused, tool};

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
async fn removing_one_tag_removes_the_image_and_twice_is_fine() {
    let daemon = daemon().await;
    let cri = daemon.cri();
    let registry = images().registry.host();
    let (one, two) = (
        small("tags").push(registry, "tags", "one"),
        small("tags").push(registry, "tags", "two"),
    );
    let (one, two) = (one.unwrap().reference, two.unwrap().reference);
    let id = cri.pull(&one).await.unwrap();
    assert_eq!(cri.pull(&two).await.unwrap(), id);
    assert_eq!(cri.image(&id).await.unwrap().unwrap().repo_tags.len(), 2);
    for _ in 0..2 {
        cri.remove_image(&one).await.unwrap();
        for name in [&one, &two, &id] {
            assert_eq!(cri.image(name).await.unwrap(), None, "{name}");
        }
    }
    assert!(
        cri.list_images()
            .await
            .unwrap()
            .iter()
            .all(|image| image.id != id)
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_outlives_the_removal_of_its_image() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "outlive").await;
    let id = pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    pod.cri.remove_image(tool()).await.unwrap();
    assert_eq!(pod.cri.image(tool()).await.unwrap(), None);
    let status = pod.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    refused(
        pod.create(&container("next", tool(), &["show"])).await,
        Code::NotFound,
        &[tool()],
    );
    pod.cri.pull(tool()).await.unwrap();
    let (status, _) = pod
        .finish(&daemon, &container("next", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn many_pulls_of_one_reference_share_the_work() {
    let daemon = daemon().await;
    let registry = FaultyRegistry::start(small("shared"), Fault::None).unwrap();
    let reference = format!("{}/shared:v1", registry.host());
    let mut pulls = Vec::new();
    for _ in 0..16 {
        let (cri, reference) = (daemon.cri(), reference.clone());
        pulls.push(tokio::spawn(async move { cri.pull(&reference).await }));
    }
    let mut ids = std::collections::BTreeSet::new();
    for pull in pulls {
        ids.insert(pull.await.unwrap().unwrap());
    }
    assert_eq!(ids.len(), 1);
    assert!(
        registry.requests() < 32,
        "16 pulls made {} connections",
        registry.requests()
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_pull_ends_and_another_is_not_delayed() {
    let daemon = daemon().await;
    let stalled = FaultyRegistry::start(small("stalled"), Fault::StallMidLayer).unwrap();
    let reference = format!("{}/stalled:v1", stalled.host());
    let (cri, stuck) = (daemon.cri(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&stuck).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pushed = small("lively")
        .push(images().registry.host(), "lively", "v1")
        .unwrap();
    let other = tokio::time::timeout(Duration::from_secs(5), async {
        daemon.cri().pull(&pushed.reference).await
    });
    other.await.unwrap().unwrap();
    pull.abort();
    assert_eq!(daemon.cri().image(&reference).await.unwrap(), None);
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

/// Names in a directory of the daemon's root; none if it is not there.
fn names_in(daemon: &coracle_tests::daemon::Daemon, directory: &str) -> Vec<String> {
    let path = daemon.scratch().dir().join("root").join(directory);
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Compiled code of all engines, by file name.
fn compiled(daemon: &coracle_tests::daemon::Daemon) -> Vec<String> {
    let engines = names_in(daemon, "compiled");
    let engines = engines.iter().filter(|name| name.len() == 64);
    engines
        .flat_map(|engine| names_in(daemon, &format!("compiled/{engine}")))
        .collect()
}

/// What is on disk of images: blobs, layers, compiled code.
fn stored(daemon: &coracle_tests::daemon::Daemon) -> [Vec<String>; 3] {
    let blobs = names_in(daemon, "images/blobs/sha256");
    [blobs, names_in(daemon, "images/layers"), compiled(daemon)]
}

#[tokio::test]
async fn a_removed_image_lives_as_long_as_its_container_and_no_longer() {
    let mut daemon = daemon().await;
    let before = stored(&daemon);
    let sleeper = |salt: &str| {
        let module = guests::sleeper(salt).unwrap();
        let mut image = Image::wasi(
            &[file("m.wasm", 0o644, &module)],
            Packing::Gzip,
            &["/m.wasm"],
        )
        .unwrap();
        image
            .add_layer(&[file("data", 0o644, salt.as_bytes())])
            .unwrap();
        image
    };
    let pushed = sleeper("removed").push(images().registry.host(), "removed", "v1");
    let name = pushed.unwrap().reference;
    daemon.cri().pull(&name).await.unwrap();
    let with_image = stored(&daemon);
    assert!(
        with_image
            .iter()
            .zip(&before)
            .all(|(now, then)| now.len() > then.len())
    );
    let pod = Pod::run(&daemon, "removed").await;
    let id = pod.start(&container("c", &name, &[])).await;
    // Each round: removed while in use, restarted, pulled and removed again.
    for round in 0..2 {
        daemon.cri().remove_image(&name).await.unwrap();
        assert_eq!(
            daemon.cri().image(&name).await.unwrap(),
            None,
            "round {round}"
        );
        daemon.restart().await.unwrap();
        // The collection at the start of a daemon has had its time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(stored(&daemon), with_image, "after restart {round}");
        daemon.cri().pull(&name).await.unwrap();
    }
    daemon.cri().remove_image(&name).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stored(&daemon), with_image);
    let status = daemon.cri().status(&id).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    daemon.cri().stop(&id, 0).await.unwrap();
    daemon.cri().remove(&id).await.unwrap();
    crate::site::eventually("everything of the image goes with its container", || {
        stored(&daemon) == before
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_dead_daemon_left_of_images_is_collected_at_the_start() {
    let mut daemon = daemon().await;
    let pushed = small("gone")
        .push(images().registry.host(), "gone", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let before = stored(&daemon);
    daemon.kill();
    let root = daemon.scratch().dir().join("root");
    let hex = "ab".repeat(32);
    std::fs::create_dir_all(root.join("images/layers").join(&hex).join("etc")).unwrap();
    let engine = names_in(&daemon, "compiled")
        .into_iter()
        .find(|name| name.len() == 64);
    let engine = root.join("compiled").join(engine.unwrap());
    for file in ["cwasm", "json"] {
        std::fs::write(engine.join(format!("{hex}.{file}")), "old").unwrap();
    }
    let blob = root.join("images/blobs/sha256").join(&hex);
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::write(&blob, "blob").unwrap();
    std::fs::File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .set_modified(old)
        .unwrap();
    daemon.restart().await.unwrap();
    crate::site::eventually("what nobody names goes", || stored(&daemon) == before).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pull_of_what_is_not_there_is_logged_for_people() {
    let daemon = daemon().await;
    let missing = format!("{}/never/pushed:v7", images().registry.host());
    refused(
        daemon.cri().pull(&missing).await,
        Code::NotFound,
        &["never/pushed"],
    );
    let log = daemon.log();
    let is_told = |line: &str| line.contains(" INFO ") && line.contains(&missing);
    assert!(log.lines().any(is_told), "{log}");
    let nobody = format!(
        "127.0.0.1:{}",
        coracle_tests::registry::free_port().unwrap()
    );
    let refusal = daemon.cri().pull(&format!("{nobody}/app:v1")).await;
    refused(
        refusal,
        Code::Unknown,
        &[
            "RegistryUnavailable",
            "cannot be reached",
            "Connection refused",
        ],
    );
    daemon.finish().await.unwrap();
}

/// What the kubelet sends about an image for pods of `handler`.
fn for_handler(reference: &str, handler: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        runtime_handler: handler.into(),
        ..coracle_tests::client::image(reference)
    }
}

#[tokio::test]
async fn the_handler_decides_which_entry_of_an_index_is_meant() {
    let daemon = daemon().await;
    let mut service = daemon.cri().images.clone();
    let host = images().registry.host();
    let program = guests::linux_pause().unwrap();
    let linux = Image::linux(&[file("pause", 0o755, &program)], &["/pause"]).unwrap();
    let wasm = small("handler");
    let only = push_index(host, "by-handler", "linux", &[("linux", "amd64", &linux)]).unwrap();
    let both = [("linux", "amd64", &linux), ("wasi", "wasm", &wasm)];
    let both = push_index(host, "by-handler", "both", &both).unwrap();
    let mut pull = async |reference: &str, handler: &str| {
        let image = Some(for_handler(reference, handler));
        let request = cri::PullImageRequest {
            image,
            ..Default::default()
        };
        service
            .pull_image(request)
            .await
            .map(|reply| reply.into_inner().image_ref)
    };
    let linux_id = pull(&only.reference, "coracle").await.unwrap();
    let offered = ["no entry for wasi/wasm", "linux/amd64"];
    refused(
        pull(&only.reference, "coracle-wasm").await,
        Code::InvalidArgument,
        &offered,
    );
    refused(
        pull(&only.reference, "kata").await,
        Code::InvalidArgument,
        &["image.runtime_handler", "kata"],
    );
    let wasm_id = pull(&both.reference, "coracle-strict").await.unwrap();
    assert_ne!(linux_id, wasm_id);
    let mut service = daemon.cri().images.clone();
    let mut status = async |reference: &str, handler: &str| {
        let image = Some(for_handler(reference, handler));
        let request = cri::ImageStatusRequest {
            image,
            verbose: false,
        };
        let reply = service.image_status(request).await.unwrap().into_inner();
        reply.image.map(|image| image.id)
    };
    assert_eq!(status(&only.reference, "").await, Some(linux_id));
    assert_eq!(status(&only.reference, "coracle-wasm").await, None);
    assert_eq!(status(&both.reference, "coracle-wasm").await, Some(wasm_id));
    daemon.finish().await.unwrap();
}
