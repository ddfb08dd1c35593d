//! What is left after an image is removed, and what is not.

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};
use tonic::Code;

use super::small;
use crate::site::{Pod, daemon, images, refused, tool};

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
async fn an_image_that_has_changed_on_the_disk_is_named_and_dropped_and_no_other_is() {
    let mut daemon = daemon().await;
    let before = names_in(&daemon, "images/layers");
    let pushed = small("changed").push(images().registry.host(), "changed", "v1");
    let name = pushed.unwrap().reference;
    daemon.cri().pull(&name).await.unwrap();
    daemon.kill();
    let layers = daemon.scratch().dir().join("root/images/layers");
    let mut new = names_in(&daemon, "images/layers");
    new.retain(|layer| !before.contains(layer));
    let changed = new.iter().map(|layer| layers.join(layer).join("m.wasm"));
    let changed: Vec<_> = changed.filter(|file| file.exists()).collect();
    assert_eq!(changed.len(), 1, "{new:?}");
    std::fs::write(&changed[0], b"\0asm").unwrap();
    // However long it took until here, the next check is not a day away.
    let _ = std::fs::remove_file(layers.with_file_name("checked"));
    daemon.restart().await.unwrap();
    let mut is_gone = false;
    for _ in 0..600 {
        is_gone = daemon.cri().image(&name).await.unwrap().is_none();
        if is_gone {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_gone, "it is still listed");
    let log = daemon.log();
    let is_told = |line: &str| line.contains("is not what was stored") && line.contains(&name);
    assert!(log.lines().any(is_told), "{log}");
    let pod = Pod::run(&daemon, "changed").await;
    let (status, _) = pod
        .finish(&daemon, &container("other", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.cri().pull(&name).await.unwrap();
    assert!(std::fs::read(&changed[0]).unwrap().len() > 4);
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
