//! kill -9 of daemon, spawner, keeper and container process under running pods; drains; upgrades and rollbacks.

mod upgrade;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::{self, Role};
use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tonic::Code;

use crate::site::{Pod, SOON, daemon, ended_soon, eventually, refused, tool};
use crate::unusable_records::reboot;

fn pids(daemon: &Daemon, role: Role) -> Vec<i32> {
    daemon
        .processes(role)
        .into_iter()
        .map(|process| process.pid)
        .collect()
}

#[tokio::test]
async fn a_killed_daemon_loses_no_pod_no_line_and_no_exit_code() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "kept").await;
    let created = pod
        .create(&container("created", tool(), &["show"]))
        .await
        .unwrap();
    let counting = pod.tool(&["count", "2000", "1"]).await;
    let ends_meanwhile = pod
        .start(&container("ends", tool(), &["count", "100", "3"]))
        .await;
    let sleeping = pod.tool(&["sleep"]).await;
    let exited = pod.tool(&["exit", "6"]).await;
    let reported = pod.cri.wait_exit(&exited).await.unwrap();
    let (keepers, guests) = (pids(&daemon, Role::Keeper), pids(&daemon, Role::Guest));
    let before = pod.cri.pod_status(&pod.id).await.unwrap();

    daemon.kill();
    tokio::time::sleep(Duration::from_millis(600)).await;
    daemon.restart().await.unwrap();

    assert_eq!(
        pod.cri.pod_status(&pod.id).await.unwrap(),
        before,
        "address, times and names survive"
    );
    assert_eq!(pids(&daemon, Role::Keeper), keepers);
    assert!(
        pids(&daemon, Role::Guest)
            .iter()
            .all(|pid| guests.contains(pid))
    );
    assert_eq!(pod.cri.list(None).await.unwrap().len(), 5);
    assert_eq!(
        pod.cri.status(&created).await.unwrap().state(),
        ContainerCreated
    );
    assert_eq!(
        pod.cri.status(&sleeping).await.unwrap().state(),
        ContainerRunning
    );
    assert_eq!(pod.cri.status(&exited).await.unwrap(), reported);
    let ended = pod.cri.wait_exit(&ends_meanwhile).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    assert!(ended.finished_at > ended.started_at);
    let counted = pod.cri.wait_exit(&counting).await.unwrap();
    assert_eq!(counted.exit_code, 0);
    let lines = daemon.output("kept", "count", "stdout").unwrap();
    assert!(
        lines
            .lines()
            .enumerate()
            .all(|(i, line)| line == format!("line {i:06}")),
        "lines are lost or doubled"
    );
    assert_eq!(lines.lines().count(), 2000);

    // All of it can be worked with.
    pod.cri.start(&created).await.unwrap();
    assert_eq!(pod.cri.wait_exit(&created).await.unwrap().exit_code, 0);
    pod.cri.stop(&sleeping, 5).await.unwrap();
    assert_eq!(pod.cri.status(&sleeping).await.unwrap().exit_code, 143);
    let (status, _) = pod
        .finish(&daemon, &container("new", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_killed_keeper_ends_exactly_its_pod() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "lost").await;
    let keeper = pids(&daemon, Role::Keeper).pop().unwrap();
    let other = Pod::run(&daemon, "other").await;
    let unharmed = other.tool(&["sleep"]).await;
    let running = pod.tool(&["count", "100000", "1"]).await;
    let finished = pod.tool(&["exit", "8"]).await;
    let reported = pod.cri.wait_exit(&finished).await.unwrap();
    pod.wait_log(&daemon, "count", "line 000050").await;

    procs::kill(keeper);
    let status = pod.cri.wait_exit(&running).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "KeeperLost")
    );
    assert!(status.finished_at > 0);
    assert_eq!(pod.cri.status(&finished).await.unwrap(), reported);
    let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxNotready);
    assert!(
        daemon
            .output("lost", "count", "stdout")
            .unwrap()
            .lines()
            .count()
            > 50
    );
    refused(
        pod.create(&container("late", tool(), &["show"])).await,
        Code::FailedPrecondition,
        &[&pod.id],
    );
    assert_eq!(
        other.cri.status(&unharmed).await.unwrap().state(),
        ContainerRunning
    );
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_killed_keeper_is_noticed_by_the_next_daemon_too() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "lost").await;
    let running = pod.tool(&["sleep"]).await;
    let keeper = pids(&daemon, Role::Keeper).pop().unwrap();
    daemon.kill();
    procs::kill(keeper);
    daemon.restart().await.unwrap();
    let status = pod.cri.wait_exit(&running).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "KeeperLost")
    );
    let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxNotready);
    eventually("its containers are dead", || {
        daemon.processes(Role::Guest).is_empty()
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_killed_spawner_is_replaced_and_no_pod_is_affected() {
    let daemon = daemon().await;
    let before = Pod::run(&daemon, "before").await;
    let running = before.tool(&["sleep"]).await;
    let spawner = pids(&daemon, Role::Spawner).pop().unwrap();
    procs::kill(spawner);
    let after = Pod::run(&daemon, "after").await;
    let (status, _) = after
        .finish(&daemon, &container("c", tool(), &["exit", "2"]))
        .await;
    assert_eq!(status.exit_code, 2);
    let (status, _) = before
        .finish(&daemon, &container("c", tool(), &["exit", "2"]))
        .await;
    assert_eq!(status.exit_code, 2);
    assert_eq!(
        before.cri.status(&running).await.unwrap().state(),
        ContainerRunning
    );
    let spawners = pids(&daemon, Role::Spawner);
    assert!(
        spawners.len() == 1 && spawners[0] != spawner,
        "{spawners:?}"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_killed_guest_is_an_error_of_that_container_alone() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "guest").await;
    let victim = pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    let guest = pids(&daemon, Role::Guest);
    assert_eq!(guest.len(), 1, "{:?}", daemon.processes(Role::Guest));
    procs::kill(guest[0]);
    let status = pod.cri.wait_exit(&victim).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxReady);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_the_daemon_and_leaves_the_pods() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "stays").await;
    let running = pod.tool(&["sleep"]).await;
    let guests = pids(&daemon, Role::Guest);
    let begun = Instant::now();
    assert!(daemon.terminate().await.unwrap().success());
    ended_soon(begun);
    assert!(!daemon.socket().exists());
    assert!(guests.iter().all(|pid| procs::is_alive(*pid)));
    daemon.restart().await.unwrap();
    assert_eq!(
        pod.cri.status(&running).await.unwrap().state(),
        ContainerRunning
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut daemon = daemon().await;
    let socket = daemon.socket();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o660, 0o700)
    );

    let second = daemon.command().unwrap().output().unwrap();
    assert!(!second.status.success());
    let printed = String::from_utf8_lossy(&second.stderr);
    assert!(
        printed.contains(&socket.display().to_string()) || printed.contains("run"),
        "{printed}"
    );
    daemon.cri().wait_ready(SOON).await.unwrap();
    assert!(procs::is_alive(daemon.pid()));

    daemon.kill();
    assert!(
        socket.exists(),
        "kill -9 should have left a stale socket to replace"
    );
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_torn_record_is_named_and_the_rest_lives_on() {
    let mut daemon = daemon().await;
    let (torn, whole) = (
        Pod::run(&daemon, "torn").await,
        Pod::run(&daemon, "whole").await,
    );
    let running = whole.tool(&["sleep"]).await;
    daemon.kill();
    let mut broken = 0;
    for path in records_of(&daemon.scratch().dir().join("root"), &torn.id) {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        broken += 1;
    }
    assert!(broken > 0, "no record of pod {} was found", torn.id);
    daemon.restart().await.unwrap();
    assert_eq!(
        whole.cri.status(&running).await.unwrap().state(),
        ContainerRunning
    );
    assert!(
        daemon.log().contains(&torn.id),
        "the log does not name the torn record"
    );
    whole.cri.stop_pod(&torn.id).await.unwrap();
    whole.cri.remove_pod(&torn.id).await.unwrap();
    whole.cri.remove_all_pods().await.unwrap();
    eventually("no keeper is left", || {
        daemon.processes(Role::Keeper).is_empty()
    })
    .await;
    let own = daemon.scratch().interface_prefix();
    eventually("no interface is left", || {
        let all = std::fs::read_dir("/sys/class/net").unwrap().flatten();
        let mut names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        !names.any(|name| name.starts_with(&own))
    })
    .await;
    daemon.rebase();
    daemon.finish().await.unwrap();
}

/// The record files below `root` that belong to a pod: files named after it, or in a directory named after it.
fn records_of(root: &Path, pod: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(records_of(&path, pod));
        } else if path.display().to_string().contains(pod)
            && path.metadata().is_ok_and(|m| m.len() > 64)
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn after_a_reboot_pods_are_not_ready_and_finished_jobs_stay_finished() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "reboot").await;
    let job = pod.tool(&["exit", "0"]).await;
    let reported = pod.cri.wait_exit(&job).await.unwrap();
    let running = pod.tool(&["sleep"]).await;
    reboot(&mut daemon);
    daemon.boot_anew().await.unwrap();
    let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(pod.cri.status(&job).await.unwrap(), reported);
    let lost = pod.cri.status(&running).await.unwrap();
    assert_eq!(
        (lost.state(), lost.exit_code, lost.reason.as_str()),
        (ContainerExited, 255, "Unknown")
    );
    assert!(lost.finished_at > 0);
    daemon.finish().await.unwrap();
}
