//! What the daemon's own series say of logs, egress lists and the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::fuse::StallingDir;
use coracle_tests::procs::Role;

use super::{listening, scrape, value};
use crate::linux::shell;
use crate::site::{Pod, eventually, tool};

/// A file system of 64 KiB at a directory, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "small"]);
        assert!(mount.arg(at).status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A number of the daemon that has no labels.
fn number(daemon: &Daemon, name: &str) -> f64 {
    value(&scrape(daemon, "/metrics"), name, &[])
}

fn logged(daemon: &Daemon) -> f64 {
    number(daemon, "coracle_container_log_bytes_total")
}

#[tokio::test]
async fn what_containers_log_is_counted_to_the_byte_also_while_no_daemon_runs() {
    let mut daemon = listening().await;
    assert_eq!(logged(&daemon), 0.0);
    let pod = Pod::run(&daemon, "logging").await;
    pod.finish(&daemon, &container("spam", tool(), &["spam"]))
        .await;
    let size = |name: &str| {
        let log = daemon.container_log("logging", name);
        std::fs::metadata(log).unwrap().len() as f64
    };
    let spam = size("spam");
    assert!(spam > 40_000.0, "{spam}");
    assert_eq!(logged(&daemon), spam);
    // It goes on without a daemon, and ends before there is one.
    let id = pod.tool(&["count", "1000", "1"]).await;
    pod.wait_log(&daemon, "count", "line 000010").await;
    let log = daemon.container_log("logging", "count");
    daemon.kill();
    let is_whole = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("000999"));
    eventually("the container ends", is_whole).await;
    daemon.restart().await.unwrap();
    pod.cri.wait_exit(&id).await.unwrap();
    let count = std::fs::metadata(&log).unwrap().len() as f64;
    assert_eq!(logged(&daemon), spam + count);
    daemon.finish().await.unwrap();
}

/// Whoever could write to the page could forge the numbers of the node.
#[tokio::test]
async fn keepers_alone_have_the_page_that_logs_are_counted_in() {
    let daemon = listening().await;
    let pod = Pod::run(&daemon, "alone").await;
    pod.tool(&["sleep"]).await;
    let page = |role: Role| {
        let processes = daemon.processes(role);
        assert!(!processes.is_empty(), "{role:?}");
        let maps = processes.iter().map(|process| {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid));
            maps.unwrap().contains("/log-counts.")
        });
        maps.collect::<Vec<_>>()
    };
    assert_eq!(page(Role::Keeper), [true]);
    assert_eq!(page(Role::Guest), [false]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn logs_on_a_full_disk_lose_lines_and_logs_on_a_dead_one_stall() {
    let daemon = listening().await;
    let lost = |daemon: &Daemon| number(daemon, "coracle_container_log_lines_lost_total");
    let stalled = |daemon: &Daemon| number(daemon, "coracle_container_logs_stalled");
    let directory = daemon.scratch().dir().join("full-logs");
    let full = SmallDisk::mount(&directory);
    let mut config = daemon.pod("full");
    config.log_directory = directory.display().to_string();
    let pod = Pod::run_config(&daemon, config).await;
    let id = pod.tool(&["count", "5000", "0"]).await;
    pod.cri.wait_exit(&id).await.unwrap();
    let lines = std::fs::read_to_string(directory.join("count.log")).unwrap();
    let missing = 5000 - lines.matches('\n').count();
    // The disk may have taken a part of one line.
    let lost_lines = lost(&daemon);
    assert!(missing > 1000, "{missing}");
    assert!(
        (lost_lines - missing as f64).abs() <= 1.0,
        "{lost_lines} {missing}"
    );
    assert_eq!(stalled(&daemon), 0.0);
    pod.cri.remove_all_pods().await.unwrap();
    drop(full);

    let directory = daemon.scratch().dir().join("stuck-logs");
    std::fs::create_dir(&directory).unwrap();
    let stalling = StallingDir::mount(&directory).unwrap();
    let mut config = daemon.pod("stuck");
    config.log_directory = directory.display().to_string();
    let stuck = Pod::run_config(&daemon, config).await;
    stuck.tool(&["count", "1000000", "1"]).await;
    let begun = || stalling.content("count.log").len() > 200;
    eventually("lines reach the log", begun).await;
    stalling.stall();
    eventually("the log writer hangs", || stalling.unanswered() > 0).await;
    assert_eq!(stalled(&daemon), 0.0);
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert_eq!(stalled(&daemon), 1.0);
    drop(stalling);
    eventually("the disk is gone", || stalled(&daemon) == 0.0).await;
    daemon.finish().await.unwrap();
}

/// A Linux container that is refused `times`, at an address of nobody.
async fn refused(daemon: &Daemon, pod: &Pod, times: u32) {
    let script = format!(
        "for i in $(seq {times}); do wget -q -O - http://198.51.100.7/ 2>/dev/null && echo reached; done; true"
    );
    let mut config = shell::sh(&shell::fresh("refused"), &script);
    shell::security(&mut config).capabilities = Some(cri::Capability {
        drop_capabilities: vec!["NET_RAW".into()],
        ..Default::default()
    });
    assert_eq!(shell::run(daemon, pod, &config).await.ok(), "");
}

#[tokio::test]
async fn what_egress_lists_refuse_is_counted_also_of_pods_that_ended_between_two_scrapes() {
    let mut daemon = listening().await;
    let base = &shell::images().base.reference;
    daemon.cri().pull(base).await.unwrap();
    let total = |daemon: &Daemon| {
        let name = "coracle_egress_refusals_total";
        value(&scrape(daemon, "/metrics"), name, &["by=\"address\""])
    };
    let listed = |name: &str| {
        let mut config = daemon.pod(name);
        let key = "egress.coracle.dev/allow".to_owned();
        config.annotations.insert(key, "192.0.2.1/32:80".to_owned());
        config
    };
    let (stays, goes) = (listed("stays"), listed("goes"));
    let stays = Pod::run_config(&daemon, stays).await;
    assert_eq!(total(&daemon), 0.0);
    refused(&daemon, &stays, 3).await;
    assert_eq!(total(&daemon), 3.0);
    let goes = Pod::run_config(&daemon, goes).await;
    refused(&daemon, &goes, 2).await;
    goes.cri.stop_pod(&goes.id).await.unwrap();
    goes.cri.remove_pod(&goes.id).await.unwrap();
    assert_eq!(total(&daemon), 5.0);
    // What was counted by the daemon before begins at 0, and at nothing less.
    daemon.restart().await.unwrap();
    assert_eq!(total(&daemon), 0.0);
    refused(&daemon, &stays, 1).await;
    assert_eq!(total(&daemon), 1.0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_disk_is_told_apart_by_what_is_on_it() {
    let daemon = listening().await;
    let base = &shell::images().base.reference;
    let part = |name: &str| {
        let name = format!("part=\"{name}\"");
        value(
            &scrape(&daemon, "/metrics"),
            "coracle_store_bytes",
            &[&name],
        )
    };
    let layers = part("layers");
    daemon.cri().pull(base).await.unwrap();
    let grown = part("layers") - layers;
    assert!(grown > 500_000.0, "{grown} of a busybox");
    let request = cri::ImageFsInfoRequest {};
    let info = daemon.cri().images.clone().image_fs_info(request).await;
    let info = info.unwrap().into_inner().image_filesystems.remove(0);
    let used = info.used_bytes.unwrap().value as f64;
    assert_eq!(part("blobs") + part("layers") + part("compiled"), used);
    assert!(part("blobs") > 0.0 && part("compiled") > 0.0);

    let pod = Pod::run(&daemon, "writing").await;
    let script = "dd if=/dev/zero of=/file bs=1024 count=3000; sleep 600";
    let id = pod.start(&shell::sh("writer", script)).await;
    let measured = || {
        // Somebody asks for stats, as the kubelet does.
        scrape(&daemon, "/metrics/cadvisor");
        part("writable") >= 3_000_000.0
    };
    eventually("what it writes is measured", measured).await;
    pod.cri.stop(&id, 0).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    assert_eq!(part("writable"), 0.0);
    daemon.cri().remove_image(base).await.unwrap();
    eventually("its layer is gone", || part("layers") == layers).await;
    daemon.finish().await.unwrap();
}
