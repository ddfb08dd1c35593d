//! The preload directory, and images that are pinned.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_images::{Images, ImagesConfig};
use serde_json::json;

use super::{GZIP, open};
use crate::support::archive::{docker, named, oci};
use crate::support::{Parts, Scratch, Unpackers, tar};

fn parts(salt: &str) -> Parts {
    let layer = tar(&[("bin/app", salt.as_bytes())]);
    Parts::archives(
        "linux",
        native(),
        json!({"Cmd": ["/bin/app"]}),
        &[(GZIP, layer)],
    )
}

fn native() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// Puts an archive of one image into the directory.
fn put(directory: &Path, file: &str, name: &str, salt: &str) -> PathBuf {
    let files = if file.starts_with("docker") {
        docker(json!([name]), &parts(salt))
    } else {
        oci(&[(named(name), &parts(salt))])
    };
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join(file), tar(&files)).unwrap();
    directory.join(file)
}

async fn names(images: &Images, directory: &Path) -> Vec<String> {
    let preloaded = images.preload(directory).await;
    preloaded
        .iter()
        .flat_map(|image| image.repo_tags.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_taken_once_and_their_images_are_pinned() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    let images = open(&scratch.0).await;
    assert!(
        names(&images, &directory).await.is_empty(),
        "an absent directory is an empty one"
    );
    put(&directory, "a.tar", "r.io/a:1", "a");
    put(&directory, "docker.tar", "r.io/b:1", "b");
    fs::write(directory.join("README"), "text").unwrap();
    fs::write(directory.join("broken.tar.gz"), "no archive").unwrap();
    assert_eq!(names(&images, &directory).await, ["r.io/a:1", "r.io/b:1"]);
    assert!(images.list().iter().all(|image| image.pinned));
    drop(images);
    let images = open(&scratch.0).await;
    assert!(images.list().len() == 2 && images.list().iter().all(|image| image.pinned));
    assert!(
        names(&images, &directory).await.is_empty(),
        "nothing has changed"
    );
    // A changed archive, and one whose image is gone.
    put(&directory, "a.tar", "r.io/a:1", "another");
    images.remove("r.io/b:1").await.unwrap();
    assert_eq!(names(&images, &directory).await, ["r.io/a:1", "r.io/b:1"]);
    // The name has moved, so the older image may be collected.
    let pinned: Vec<_> = images
        .list()
        .into_iter()
        .filter(|image| image.pinned)
        .collect();
    assert_eq!((images.list().len(), pinned.len()), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_others_can_write_are_not_taken() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    let images = open(&scratch.0).await;
    let open_to_all = put(&directory, "a.tar", "r.io/a:1", "a");
    put(&directory, "b.tar", "r.io/b:1", "b");
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(&open_to_all, 0o666);
    set(&directory, 0o777);
    assert!(names(&images, &directory).await.is_empty());
    set(&directory, 0o755);
    assert_eq!(names(&images, &directory).await, ["r.io/b:1"]);
    set(&open_to_all, 0o644);
    assert_eq!(names(&images, &directory).await, ["r.io/a:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pinned_by_configuration() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    for (index, name) in [
        "docker.io/library/base:latest",
        "r.io/team/a:1",
        "r.io/teams/b:1",
    ]
    .iter()
    .enumerate()
    {
        put(&directory, &format!("{index}.tar"), name, name);
    }
    let images = open(&scratch.0).await;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        images
            .import(
                fs::File::open(path).unwrap(),
                &coracle_images::ImportRequest::default(),
            )
            .await
            .unwrap();
    }
    assert!(images.list().iter().all(|image| !image.pinned));
    drop(images);
    let mut config = ImagesConfig::new(&scratch.0);
    config.pinned = vec!["base".into(), "r.io/team/*".into()];
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let pinned = |name: &str| images.resolve(name).unwrap().pinned;
    assert!(pinned("base") && pinned("r.io/team/a:1") && !pinned("r.io/teams/b:1"));
}
