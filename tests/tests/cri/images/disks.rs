//! Images and writable layers on file systems of their own: ImageFsInfo says which has what.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};

use super::small;
use crate::site::{Pod, images, tool};

/// A file system mounted at a directory, until the end of the test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256m", "split"])
            .arg(at));
        Self(at.to_owned())
    }

    fn ext4(at: &Path, file: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let made = std::fs::File::create(file).unwrap();
        made.set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(file));
        run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

async fn usage(daemon: &Daemon) -> [cri::FilesystemUsage; 2] {
    let mut service = daemon.cri().images.clone();
    let reply = service.image_fs_info(cri::ImageFsInfoRequest {}).await;
    let reply = reply.unwrap().into_inner();
    let one = |mut usage: Vec<cri::FilesystemUsage>| {
        assert_eq!(usage.len(), 1);
        usage.remove(0)
    };
    [
        one(reply.image_filesystems),
        one(reply.container_filesystems),
    ]
}

fn mountpoint(usage: &cri::FilesystemUsage) -> PathBuf {
    usage.fs_id.clone().unwrap().mountpoint.into()
}

fn bytes(usage: &cri::FilesystemUsage) -> u64 {
    usage.used_bytes.unwrap().value
}

/// What a container writes counts where its layers are, and an image where images are.
async fn check(daemon: &mut Daemon, layers: &Path) {
    daemon.restart().await.unwrap();
    daemon.rebase();
    daemon.cri().pull(tool()).await.unwrap();
    let root = daemon.scratch().dir().join("root");
    let [images_before, layers_before] = usage(daemon).await;
    assert_eq!(mountpoint(&images_before), root.join("images"));
    assert_eq!(mountpoint(&layers_before), layers);
    let pod = Pod::run(daemon, "disks").await;
    let text = "x".repeat(100_000);
    let config = container("write", tool(), &["write", "/file", &text]);
    let id = pod.start(&config).await;
    pod.cri.wait_exit(&id).await.unwrap();
    let mut service = daemon.cri().runtime.clone();
    let request = cri::ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = service.container_stats(request).await.unwrap().into_inner();
    let layer = stats.stats.unwrap().writable_layer.unwrap();
    assert_eq!(mountpoint(&layer), layers);
    let pushed = small("disks").push(images().registry.host(), "disks", "v1");
    let [images_between, _] = usage(daemon).await;
    assert_eq!(bytes(&images_between), bytes(&images_before));
    daemon.cri().pull(&pushed.unwrap().reference).await.unwrap();
    let grown = async || {
        let [images, layers] = usage(daemon).await;
        bytes(&images) > bytes(&images_before) && bytes(&layers) >= bytes(&layers_before) + 100_000
    };
    for attempt in 0.. {
        if grown().await {
            break;
        }
        assert!(attempt < 600, "{:?}", usage(daemon).await);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn images_on_a_disk_of_their_own_are_reported_apart() {
    let mut daemon = Daemon::prepare(Options::default()).unwrap();
    let root = daemon.scratch().dir().join("root");
    let mounted = Mounted::tmpfs(&root.join("images"));
    check(&mut daemon, &root).await;
    daemon.finish().await.unwrap();
    drop(mounted);
}

#[tokio::test]
async fn containers_on_a_disk_of_their_own_are_reported_apart() {
    let mut daemon = Daemon::prepare(Options::default()).unwrap();
    let root = daemon.scratch().dir().join("root");
    let disk = daemon.scratch().dir().join("disk");
    let mounted = Mounted::ext4(&root.join("pods"), &disk);
    check(&mut daemon, &root.join("pods")).await;
    daemon.finish().await.unwrap();
    drop(mounted);
}
