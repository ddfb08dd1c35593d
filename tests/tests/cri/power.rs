//! Records as a power loss may leave them, made by hand: those that were not on the disk are empty, half or missing.
//! Not here: a machine that is switched off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use cri::ContainerState::ContainerExited;
use cri::PodSandboxState::SandboxNotready;

use crate::site::{Pod, daemon, eventually, failing_daemon, tool};
use crate::unusable_records::{generations, reboot};

fn directory(daemon: &Daemon, pod: &str) -> PathBuf {
    daemon.scratch().dir().join("root/pods").join(pod)
}

/// Leaves of a file what a power loss may leave of one that was not on the disk.
fn lose(path: &Path, how: &str) {
    let bytes = fs::read(path).unwrap();
    match how {
        "empty" => fs::write(path, "").unwrap(),
        "zeros" => fs::write(path, vec![0; bytes.len()]).unwrap(),
        "half" => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
        "absent" => fs::remove_file(path).unwrap(),
        _ => panic!("no way to lose a file is called {how}"),
    }
}

#[tokio::test]
async fn records_are_on_the_disk_within_a_second_and_then_nothing_older_is_left() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "synced").await;
    let job = pod.tool(&["exit", "7"]).await;
    pod.cri.wait_exit(&job).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let directory = directory(&daemon, &pod.id);
    // One generation is left once the disk has it, and the exit record goes after that.
    assert_eq!(generations(&directory).len(), 1);
    assert_eq!(
        generations(&directory.join("containers").join(&job)).len(),
        1
    );
    assert!(!directory.join("exits").join(&job).exists());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_end_daemon_leaves_nothing_to_lose() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "flushed").await;
    daemon.terminate().await.unwrap();
    assert_eq!(generations(&directory(&daemon, &pod.id)).len(), 1);
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_finished_job_keeps_its_exit_whatever_the_disk_has_of_its_record() {
    for how in ["empty", "zeros", "half", "absent"] {
        // The disk takes nothing in time.
        let mut daemon = failing_daemon().await;
        daemon.plan("sync.records error\n").unwrap();
        let pod = Pod::run(&daemon, "lost").await;
        let job = pod.tool(&["exit", "7"]).await;
        pod.cri.wait_exit(&job).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let records = generations(&directory(&daemon, &pod.id).join("containers").join(&job));
        assert!(records.len() > 3, "older ones have gone: {records:?}");
        reboot(&mut daemon);
        // Created, before it was started, is all that the disk has of it; and what its keeper wrote.
        for path in &records[2..] {
            lose(path, how);
        }
        daemon.plan("").unwrap();
        daemon.boot_anew().await.unwrap();
        let status = pod.cri.status(&job).await.unwrap();
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerExited, 7),
            "{how}"
        );
        let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
        assert_eq!(sandbox.state(), SandboxNotready, "{how}");
        pod.cri.remove_all_pods().await.unwrap();
        daemon.expect_no_leak().await.unwrap();
        daemon.finish().await.unwrap();
    }
}

#[tokio::test]
async fn what_never_was_on_the_disk_goes_and_leaves_nothing() {
    for how in ["empty", "zeros"] {
        let mut daemon = failing_daemon().await;
        daemon.plan("sync.records error\n").unwrap();
        let (kept, lost) = (
            Pod::run(&daemon, "kept").await,
            Pod::run(&daemon, "lost").await,
        );
        let job = kept.tool(&["exit", "7"]).await;
        let gone = container("gone", tool(), &["exit", "8"]);
        let gone = kept.start(&gone).await;
        kept.cri.wait_exit(&job).await.unwrap();
        kept.cri.wait_exit(&gone).await.unwrap();
        reboot(&mut daemon);
        let container = directory(&daemon, &kept.id).join("containers").join(&gone);
        for place in [directory(&daemon, &lost.id), container.clone()] {
            for path in generations(&place) {
                lose(&path, how);
            }
        }
        daemon.plan("").unwrap();
        daemon.boot_anew().await.unwrap();
        let all = kept.cri.list_pods(None).await.unwrap();
        assert!(all.iter().all(|pod| pod.id == kept.id), "{how}: {all:?}");
        assert_eq!(kept.cri.status(&job).await.unwrap().exit_code, 7);
        assert!(kept.cri.status(&gone).await.is_err());
        assert!(daemon.log().contains(&lost.id) && daemon.log().contains(&gone));
        eventually("their directories go", || {
            !directory(&daemon, &lost.id).exists() && !container.exists()
        })
        .await;
        assert!(!daemon.scratch().dir().join("root/quarantine").exists());
        kept.cri.remove_all_pods().await.unwrap();
        daemon.finish().await.unwrap();
    }
}
