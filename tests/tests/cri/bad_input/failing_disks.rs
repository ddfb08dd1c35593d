//! A disk that fails below the images: pulls are refused, and what was stored is there when the disk is.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::Image;
use coracle_tests::scripted_registry::ScriptedRegistry;
use tonic::Code;

use crate::site::{Pod, tool};

/// An ext4 file system in a file, mounted at the root directory of a daemon.
struct Disk {
    file: PathBuf,
    root: PathBuf,
}

impl Disk {
    fn below(daemon: &Daemon) -> Self {
        let directory = daemon.scratch().dir();
        let disk = Self {
            file: directory.join("disk"),
            root: directory.join("root"),
        };
        let file = std::fs::File::create(&disk.file).unwrap();
        file.set_len(128 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&disk.file));
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.file)
            .arg(&self.root));
    }

    /// From now on nothing can be written, as after an error of the disk.
    fn fail(&self) {
        run(Command::new("mount")
            .args(["-o", "remount,abort"])
            .arg(&self.root));
    }

    /// Mounts it again. Nobody may use it.
    fn repair(&self) {
        run(Command::new("umount").arg(&self.root));
        for _ in 0..600 {
            let used = Command::new("losetup").arg("-j").arg(&self.file).output();
            if used.unwrap().stdout.is_empty() {
                return self.mount();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{} stays in use", self.file.display());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_refuses_pulls_and_loses_no_image() {
    let mut daemon = Daemon::prepare(Options::default()).unwrap();
    let disk = Disk::below(&daemon);
    daemon.restart().await.unwrap();
    daemon.rebase();
    daemon.cri().pull(tool()).await.unwrap();
    let registry = ScriptedRegistry::start().unwrap();
    let image = Image::artifact(&guests::nothing("read-only").unwrap());
    registry.serve("app", "v1", &image);
    let reference = format!("{}/app:v1", registry.host());
    disk.fail();
    for _ in 0..2 {
        let refusal = daemon.cri().pull(&reference).await.unwrap_err();
        assert_eq!(refusal.code(), Code::Internal, "{}", refusal.message());
        assert_eq!(daemon.cri().image(&reference).await.unwrap(), None);
        assert!(daemon.cri().image(tool()).await.unwrap().is_some());
    }
    daemon.kill();
    disk.repair();
    daemon.restart().await.unwrap();
    let pod = Pod::run(&daemon, "after").await;
    let (status, _) = pod
        .finish(&daemon, &container("old", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.cri().pull(&reference).await.unwrap();
    daemon.finish().await.unwrap();
    drop(disk);
}
