//! Directory trees that a container leaves behind: their removal blocks and breaks nothing, however deep they are.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::canary::{Canary, hostile, script};
use crate::linux::shell::{daemon, on_peer};
use crate::site::{Pod, SOON, ended_soon};

/// 16,500 directories, each in the one before.
const DIG: &str = "p=$(busybox yes d/ | busybox head -n 1500 | busybox tr -d '\\n'); i=0
    while [ $i -lt 11 ]; do busybox mkdir -p $p || exit 1; cd -P $p 2>/dev/null; i=$((i+1)); done; echo dug";

/// RemoveContainer of a deep tree answers soon, and the tree goes.
#[tokio::test]
async fn a_deep_tree_is_removed_without_harm() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "deep").await;
    let image = hostile(&daemon, |layer| layer).await;
    let config = script(&image, DIG);
    let id = pod.start(&config).await;
    let mut exit = pod.cri.wait_exit(&id).await;
    for _ in 0..8 {
        if exit.is_err() {
            exit = pod.cri.wait_exit(&id).await;
        }
    }
    assert_eq!(exit.unwrap().exit_code, 0);
    let begun = Instant::now();
    pod.cri.remove(&id).await.unwrap();
    let took = begun.elapsed();
    assert!(on_peer() || took < SOON, "{took:?}");
    canary.is_untouched(&daemon).await;
    if !on_peer() {
        let trash = daemon.scratch().dir().join("root/trash");
        wait_until_empty(&[trash]).await;
    }
    daemon.finish().await.unwrap();
}

/// A start finds deep trees wherever a dead daemon may have left them: it serves at once, and they go.
#[tokio::test]
async fn deep_trees_of_the_dead_do_not_keep_a_daemon_from_starting() {
    if on_peer() {
        return;
    }
    let mut daemon = daemon().await;
    let root = daemon.scratch().dir().join("root");
    daemon.kill();
    let orphan = root.join(format!("pods/{}", "ab".repeat(32)));
    let places = [
        orphan.join(format!("containers/{}/upper", "cd".repeat(32))),
        root.join("images/tmp/0"),
    ];
    for place in &places {
        fs::create_dir_all(place).unwrap();
        dig(place, 16_000);
    }
    let begun = Instant::now();
    daemon.restart().await.unwrap();
    ended_soon(begun);
    assert!(places.iter().all(|place| !place.exists()));
    wait_until_empty(&[root.join("trash"), root.join("images/trash")]).await;
    daemon.finish().await.unwrap();
}

/// A slow disk takes a millisecond to remove a directory.
async fn wait_until_empty(directories: &[PathBuf]) {
    let begun = Instant::now();
    let is_empty = |directory: &PathBuf| fs::read_dir(directory).unwrap().next().is_none();
    while !directories.iter().all(is_empty) {
        assert!(begun.elapsed() < Duration::from_secs(180), "not deleted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn dig(at: &Path, depth: usize) {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory: OwnedFd = open(at, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&directory, "d", Mode::RWXU).unwrap();
        directory = openat(&directory, "d", flags, Mode::empty()).unwrap();
    }
}
