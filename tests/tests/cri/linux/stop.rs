//! Stopping: which signal, how long it may take, and that nothing of the container is left.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::procs::{self, is_alive};

use super::shell::{daemon, host_pid, images, on_peer, program, sh};
use crate::site::{Pod, SOON, ended_soon, eventually};

/// A script that says which signal it got, and then ends with 7.
fn listener(name: &str) -> cri::ContainerConfig {
    sh(name, &listening())
}

fn listening() -> String {
    let trap = |signal: &str| format!("trap 'echo got {signal}; exit 7' {signal}; ");
    let traps: String = ["TERM", "USR1", "USR2", "QUIT"].map(trap).concat();
    format!("{traps} echo ready; while :; do sleep 0.02; done")
}

#[tokio::test]
async fn the_stop_signal_is_cris_then_the_images_then_term() {
    let daemon = daemon().await;
    daemon
        .cri()
        .pull(&images().dressed.reference)
        .await
        .unwrap();
    let pod = Pod::run(&daemon, "signals").await;
    let of_image = client::container("image", &images().dressed.reference, &[&listening()]);
    let mut of_cri = of_image.clone();
    of_cri.metadata.as_mut().unwrap().name = "cri".into();
    of_cri.log_path = "cri.log".into();
    of_cri.stop_signal = cri::Signal::Sigusr2 as i32;
    let mut cases = vec![(listener("default"), "TERM"), (of_image, "USR1")];
    if !on_peer() {
        cases.push((of_cri, "USR2"));
    }
    for (config, signal) in cases {
        let name = config.metadata.as_ref().unwrap().name.clone();
        let id = pod.start(&config).await;
        pod.wait_log(&daemon, &name, "ready").await;
        pod.cri.stop(&id, 10).await.unwrap();
        let status = pod.cri.status(&id).await.unwrap();
        let out = daemon.output("signals", &name, "stdout").unwrap();
        assert_eq!(out, format!("ready\ngot {signal}\n"));
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_ignores_the_signal_is_killed_after_the_grace_and_not_before() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "deaf").await;
    for (name, grace) in [("now", 0), ("later", 1)] {
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let id = pod.start(&sh(name, script)).await;
        pod.wait_log(&daemon, name, "ready").await;
        let begun = Instant::now();
        pod.cri.stop(&id, grace).await.unwrap();
        let took = begun.elapsed();
        let grace = Duration::from_secs(grace.cast_unsigned());
        assert!(took >= grace && took < grace + SOON, "{took:?}");
        let status = pod.cri.status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn grandchildren_end_with_the_container_however_they_hide() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "family").await;
    // In a session of its own, with an ignored signal, a closed stdout, and no parent left.
    let script = "setsid sh -c 'trap \"\" TERM HUP; exec sleep 4711' </dev/null >/dev/null 2>&1 & \
                  echo ready; exec sleep 4712";
    for (name, end) in [
        ("stopped", "stop"),
        ("killed", "kill"),
        ("removed", "remove"),
    ] {
        let id = pod.start(&sh(name, script)).await;
        pod.wait_log(&daemon, name, "ready").await;
        let hidden = host_pid(&daemon, "sleep 4711");
        match end {
            "stop" => pod.cri.stop(&id, 0).await.unwrap(),
            "remove" => pod.cri.remove(&id).await.unwrap(),
            _ => procs::kill(host_pid(&daemon, "sleep 4712")),
        }
        eventually("the hidden grandchild ends", || !is_alive(hidden)).await;
        if end == "kill" {
            assert_eq!(pod.cri.wait_exit(&id).await.unwrap().exit_code, 137);
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_grandchild_that_holds_the_streams_does_not_hold_up_the_end() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "holder").await;
    let begun = Instant::now();
    let id = pod
        .start(&sh("c", "setsid sleep 600 & echo first; exit 5"))
        .await;
    let status = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!(status.exit_code, 5);
    ended_soon(begun);
    assert_eq!(daemon.output("holder", "c", "stdout").unwrap(), "first\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stopping_twice_and_stopping_what_has_ended_changes_nothing() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "twice").await;
    let id = pod.start(&program("c", &["/bin/sh", "-c", "exit 4"])).await;
    let before = pod.cri.wait_exit(&id).await.unwrap();
    pod.cri.stop(&id, 0).await.unwrap();
    pod.cri.stop(&id, 5).await.unwrap();
    let after = pod.cri.status(&id).await.unwrap();
    assert_eq!(
        (after.exit_code, after.finished_at),
        (4, before.finished_at)
    );
    pod.cri.remove(&id).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    daemon.finish().await.unwrap();
}
