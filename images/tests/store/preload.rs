//! The preload directory, and images that are pinned.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_images::{Images, ImagesConfig};
use serde_json::json;

use super::{linux, open};
use crate::support::archive::{docker, named, oci};
use crate::support::{Scratch, Unpackers, tar};

/// Puts an archive of one image into the directory.
fn put(directory: &Path, file: &str, name: &str, salt: &str) -> PathBuf {
    let files = if file.starts_with("docker") {
        docker(json!([name]), &linux(salt))
    } else {
        oci(&[(named(name), &linux(salt))])
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

/// Writes a file and says that it was last changed at `time`.
fn write_at(path: &Path, bytes: &[u8], time: SystemTime) {
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_failed_is_tried_again_when_it_changes() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    let archive = put(&directory, "a.tar", "r.io/a:1", "a");
    let good = fs::read(&archive).unwrap();
    let (first, later) = (
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000),
    );
    let images = open(&scratch.0).await;
    write_at(&archive, &vec![b'x'; good.len()], first);
    assert!(names(&images, &directory).await.is_empty());
    // What looks like the same file is not read, in this and in the next process.
    write_at(&archive, &good, first);
    assert!(names(&images, &directory).await.is_empty());
    drop(images);
    let images = open(&scratch.0).await;
    assert!(names(&images, &directory).await.is_empty());
    write_at(&archive, &good, later);
    assert_eq!(names(&images, &directory).await, ["r.io/a:1"]);
    // A record ends with its file, unless one of its images is here.
    write_at(&archive, &vec![b'x'; good.len()], first);
    assert!(names(&images, &directory).await.is_empty());
    fs::remove_file(&archive).unwrap();
    assert!(names(&images, &directory).await.is_empty());
    write_at(&archive, &good, first);
    assert_eq!(names(&images, &directory).await, ["r.io/a:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_takes_too_long_is_given_up() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    put(&directory, "a.tar", "r.io/a:1", "a");
    let mut config = ImagesConfig::new(&scratch.0);
    config.preload_timeout = Duration::from_nanos(1);
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    assert!(names(&images, &directory).await.is_empty());
    assert!(images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_does_not_hold_the_start_up() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let scratch = Scratch::new();
    let directory = scratch.0.join("preload");
    put(&directory, "b.tar", "r.io/b:1", "b");
    let (fifo, mode) = (directory.join("a.tar"), Mode::from_raw_mode(0o600));
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    let images = open(&scratch.0).await;
    let preloading = names(&images, &directory);
    let ended = tokio::time::timeout(Duration::from_secs(120), preloading).await;
    assert_eq!(ended.expect("it hangs"), ["r.io/b:1"]);
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
