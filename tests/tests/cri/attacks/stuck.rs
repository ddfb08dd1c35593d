//! Processes that do not die of SIGKILL, as of a tenant whose disk is dead: others are served meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use coracle_tests::fuse::StallingDir;
use tokio::task::JoinSet;

use super::canary::Canary;
use crate::linux::shell::{self, fresh, host_dir, mount, on_peer, sh};
use crate::site::Pod;

/// More than twice as many as the daemon has threads that may block: one that blocked for each would keep a small pod
/// waiting for 4 s, twice the time that killing takes.
const MANY: usize = 200;

/// A container whose `/disk` is `dir`.
fn with_disk(script: &str, dir: &Path) -> cri::ContainerConfig {
    let mut config = sh(&fresh("main"), script);
    config.mounts = vec![mount(dir, "/disk", false)];
    config
}

/// How long a small pod of another tenant takes at most, of a few.
async fn a_small_pod(daemon: &Daemon) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let begun = Instant::now();
        let pod = Pod::run(daemon, &fresh("neighbour")).await;
        let (status, _) = pod.finish(daemon, &sh("fine", "true")).await;
        assert_eq!(status.exit_code, 0);
        pod.cri.remove_pod(&pod.id).await.unwrap();
        longest = longest.max(begun.elapsed());
    }
    longest
}

/// Holds a small pod that took so long beside what hung to what one takes before that and behind it: now and then this machine
/// has other things to do.
async fn was_not_held_up(daemon: &Daemon, before: Duration, took: Duration) {
    let usual = before.max(a_small_pod(daemon).await);
    let limit = usual * 3 + Duration::from_secs(2);
    assert!(took < limit, "a small pod took {took:?}, not {limit:?}");
}

/// Waits until so many writes hang.
async fn all_hang(stalling: &StallingDir) {
    for _ in 0..6000 {
        if stalling.unanswered() >= MANY {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} of {MANY} writes hang", stalling.unanswered());
}

#[tokio::test]
async fn containers_that_outlive_their_kill_hold_up_nobody_else() {
    if on_peer() {
        return; // It makes no such promise.
    }
    let daemon = shell::daemon().await;
    let canary = Canary::plant(&daemon);
    let before = a_small_pod(&daemon).await;
    let dead = host_dir(&daemon, "dead");
    let stalling = StallingDir::mount(&dead).unwrap();
    stalling.stall();
    let pod = Arc::new(Pod::run(&daemon, "stuck").await);
    let mut ids = Vec::new();
    for number in 0..MANY {
        let script = format!("echo x > /disk/f{number}");
        ids.push(pod.start(&with_disk(&script, &dead)).await);
    }
    all_hang(&stalling).await;
    let mut stops = JoinSet::new();
    for id in ids {
        let pod = Arc::clone(&pod);
        stops.spawn(async move { pod.cri.stop(&id, 0).await });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let took = a_small_pod(&daemon).await;
    drop(stalling);
    stops.join_all().await;
    was_not_held_up(&daemon, before, took).await;
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn execs_that_outlive_their_kill_hold_up_nobody_else() {
    if on_peer() {
        return; // It makes no such promise.
    }
    let daemon = shell::daemon().await;
    let before = a_small_pod(&daemon).await;
    let dead = host_dir(&daemon, "dead");
    let stalling = StallingDir::mount(&dead).unwrap();
    stalling.stall();
    let pod = Pod::run(&daemon, "stuck").await;
    let id = pod.start(&with_disk("sleep 1000", &dead)).await;
    let begun = Instant::now();
    let mut execs = JoinSet::new();
    for number in 0..MANY {
        let script = format!("echo x > /disk/f{number}");
        let request = cri::ExecSyncRequest {
            container_id: id.clone(),
            cmd: vec!["/bin/sh".into(), "-c".into(), script],
            timeout: 40,
        };
        let mut runtime = pod.cri.runtime.clone();
        execs.spawn(async move { runtime.exec_sync(request).await.map(drop) });
    }
    all_hang(&stalling).await;
    // Their time ends, and they are killed, which takes seconds.
    let end = Duration::from_millis(40_300).saturating_sub(begun.elapsed());
    tokio::time::sleep(end).await;
    let took = a_small_pod(&daemon).await.max(a_small_pod(&daemon).await);
    drop(stalling);
    for ended in execs.join_all().await {
        assert_eq!(ended.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }
    was_not_held_up(&daemon, before, took).await;
    daemon.finish().await.unwrap();
}
