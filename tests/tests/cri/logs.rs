//! Container logs: format, completeness, reopening, and a log whose disk has stalled.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::fuse::StallingDir;
use coracle_tests::log;
use tonic::Code;

use crate::site::{Pod, daemon, ended_soon, eventually, refused, tool};

#[tokio::test]
async fn long_lines_are_split_streams_are_marked_and_no_byte_is_lost() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "spam").await;
    let (_, text) = pod
        .finish(&daemon, &container("spam", tool(), &["spam"]))
        .await;
    let records = log::read(&daemon.container_log("spam", "spam")).unwrap();
    assert!(records.iter().all(|record| record.bytes.len() <= 16384));
    let long: String = "0123456789abcdef".chars().cycle().take(40_000).collect();
    assert_eq!(text, format!("{long}\none line\n\nno newline at the end"));
    let last = records.iter().rfind(|record| record.stream == "stdout");
    assert!(!last.unwrap().full, "a line that no newline ends is whole");
    assert_eq!(log::text(&records, "stderr"), "to stderr\n");
    // 40,000 bytes are two full pieces and the end of the line.
    let pieces: Vec<_> = records
        .iter()
        .filter(|record| record.stream == "stdout")
        .map(|record| (record.full, record.bytes.len()))
        .collect();
    assert_eq!(pieces[..3], [(false, 16384), (false, 16384), (true, 7232)]);
    for stream in ["stdout", "stderr"] {
        let times: Vec<_> = records
            .iter()
            .filter(|r| r.stream == stream)
            .map(|r| &r.time)
            .collect();
        assert!(times.is_sorted(), "times of {stream} go back: {times:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_log_is_complete_when_the_exit_is_seen() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "complete").await;
    for round in 0..20 {
        let (_, text) = pod
            .finish(
                &daemon,
                &container(&format!("r{round}"), tool(), &["count", "500", "0"]),
            )
            .await;
        assert_eq!(text.lines().count(), 500, "round {round}");
        assert!(text.ends_with("line 000499\n"));
    }
    daemon.finish().await.unwrap();
}

/// It would be tried again for ever.
#[tokio::test]
async fn a_program_that_has_closed_its_output_has_its_log_rotated() {
    if crate::linux::shell::on_peer() {
        return;
    }
    let daemon = crate::linux::shell::daemon().await;
    let pod = Pod::run(&daemon, "closed").await;
    let script = "echo last; exec >&- 2>&-; sleep 1000";
    let id = pod.start(&crate::linux::shell::sh("c", script)).await;
    pod.wait_log(&daemon, "c", "last").await;
    let path = daemon.container_log("closed", "c");
    for turn in 0..3 {
        std::fs::rename(&path, path.with_extension(format!("log.{turn}"))).unwrap();
        pod.cri.reopen_log(&id).await.unwrap();
        assert!(path.exists());
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn reopening_loses_and_repeats_nothing() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "rotate").await;
    // Several seconds: it still runs when its log was reopened for the last time.
    let id = pod.tool(&["count", "5000", "1"]).await;
    let path = daemon.container_log("rotate", "count");
    pod.wait_log(&daemon, "count", "line 000010").await;
    let mut parts = Vec::new();
    for turn in 0..3 {
        let old = path.with_extension(format!("log.{turn}"));
        std::fs::rename(&path, &old).unwrap();
        pod.cri.reopen_log(&id).await.unwrap();
        assert!(path.exists());
        parts.push(old);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pod.cri.wait_exit(&id).await.unwrap();
    parts.push(path.clone());
    let all: String = parts
        .iter()
        .map(|part| log::text(&log::read(part).unwrap(), "stdout"))
        .collect();
    let want: String = (0..5000).map(|i| format!("line {i:06}\n")).collect();
    assert_eq!(all, want);

    // Not running: refused, and no file appears.
    std::fs::remove_file(&path).unwrap();
    refused(
        pod.cri.reopen_log(&id).await,
        Code::FailedPrecondition,
        &[&id],
    );
    assert!(!path.exists());
    refused(
        pod.cri.reopen_log(&"0".repeat(64)).await,
        Code::NotFound,
        &["00000000"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_without_a_log_path_runs_and_its_output_is_dropped() {
    let daemon = daemon().await;
    let mut config = daemon.pod("nolog");
    config.log_directory = String::new();
    let pod = Pod::run_config(&daemon, config).await;
    let mut quiet = container("show", tool(), &["show"]);
    quiet.log_path = String::new();
    let id = pod.start(&quiet).await;
    let status = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!((status.exit_code, status.log_path.as_str()), (0, ""));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_log_on_a_stalled_disk_delays_nobody_and_the_stop_keeps_its_deadline() {
    let daemon = daemon().await;
    let stuck_logs = daemon.scratch().dir().join("stuck-logs");
    std::fs::create_dir(&stuck_logs).unwrap();
    let stalling = StallingDir::mount(&stuck_logs).unwrap();
    let mut config = daemon.pod("stuck");
    config.log_directory = stuck_logs.display().to_string();
    let stuck = Pod::run_config(&daemon, config).await;
    let chatty = stuck.tool(&["count", "1000000", "1"]).await;
    let sibling = stuck.start(&container("sleep", tool(), &["sleep"])).await;
    eventually("lines reach the log", || {
        stalling.content("count.log").len() > 200
    })
    .await;
    stalling.stall();
    eventually("the log writer hangs", || stalling.unanswered() > 0).await;

    // Another pod notices nothing.
    let begun = Instant::now();
    let other = Pod::run(&daemon, "other").await;
    let (status, text) = other
        .finish(&daemon, &container("count", tool(), &["count", "100", "0"]))
        .await;
    assert_eq!((status.exit_code, text.lines().count()), (0, 100));
    ended_soon(begun);
    // Nor do lists and status of the stuck one.
    let begun = Instant::now();
    assert_eq!(
        stuck.cri.status(&chatty).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    assert_eq!(stuck.cri.list(None).await.unwrap().len(), 3);
    ended_soon(begun);

    for (id, grace) in [(chatty, 1), (sibling, 1)] {
        let begun = Instant::now();
        stuck.cri.stop(&id, grace).await.unwrap();
        ended_soon(begun);
        assert_eq!(
            stuck.cri.status(&id).await.unwrap().state(),
            cri::ContainerState::ContainerExited
        );
    }
    // The keeper hangs in the kernel with its log, so the sandbox may not end before the disk answers again; but the
    // call does, and once the disk is gone the next one succeeds.
    let begun = Instant::now();
    if let Err(refusal) = stuck.cri.stop_pod(&stuck.id).await {
        assert_eq!(refusal.code(), Code::DeadlineExceeded, "{refusal}");
    }
    assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
    drop(stalling);
    stuck.cri.stop_pod(&stuck.id).await.unwrap();
    daemon.finish().await.unwrap();
}
