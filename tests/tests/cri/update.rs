//! UpdateContainerResources and UpdatePodSandboxResources: an accepted change is in the kernel, in the status and there
//! after the daemon's death; a refused one has changed nothing.

use std::fs;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container};
use coracle_tests::daemon::Daemon;
use tonic::{Code, Status};

use crate::site::{Pod, daemon, refused, tool};

const MIB: i64 = 1 << 20;

pub async fn update(
    cri: &Cri,
    id: &str,
    change: impl FnOnce(&mut cri::LinuxContainerResources),
) -> Result<(), Status> {
    let mut linux = cri::LinuxContainerResources::default();
    change(&mut linux);
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    let mut runtime = cri.runtime.clone();
    runtime.update_container_resources(request).await.map(drop)
}

async fn shown(pod: &Pod, id: &str) -> cri::LinuxContainerResources {
    let status = pod.cri.status(id).await.unwrap();
    status.resources.unwrap().linux.unwrap()
}

/// Memory limit and CPU quota as the kernel has them, and its word for the weight.
pub fn in_kernel(daemon: &Daemon, id: &str) -> (String, String, String) {
    let path = format!("{}/{id}", daemon.cgroup_parent());
    let read = |controller: &str, file: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup{controller}{path}/{file}"));
        text.unwrap().trim().to_owned()
    };
    if fs::exists("/sys/fs/cgroup/memory").unwrap() {
        (
            read("/memory", "memory.limit_in_bytes"),
            read("/cpu", "cpu.cfs_quota_us"),
            read("/cpu", "cpu.shares"),
        )
    } else {
        let quota = read("", "cpu.max");
        let quota = quota.split(' ').next().unwrap().to_owned();
        (read("", "memory.max"), quota, read("", "cpu.weight"))
    }
}

fn is_v1() -> bool {
    fs::exists("/sys/fs/cgroup/memory").unwrap()
}

#[tokio::test]
async fn new_limits_hold_at_once_and_after_the_daemon_was_killed() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "update").await;
    let id = pod.tool(&["sleep"]).await;
    let change = |linux: &mut cri::LinuxContainerResources| {
        (linux.cpu_shares, linux.cpu_quota, linux.cpu_period) = (512, 50_000, 100_000);
        linux.memory_limit_in_bytes = 256 * MIB;
        linux.cpuset_cpus = "0".into();
    };
    update(&pod.cri, &id, change).await.unwrap();
    let weight = if is_v1() { "512" } else { "20" };
    let kernel = (
        (256 * MIB).to_string(),
        "50000".to_owned(),
        weight.to_owned(),
    );
    assert_eq!(in_kernel(&daemon, &id), kernel);
    let status = shown(&pod, &id).await;
    assert_eq!((status.cpu_shares, status.cpu_quota), (512, 50_000));
    assert_eq!(status.memory_limit_in_bytes, 256 * MIB);

    daemon.kill();
    daemon.restart().await.unwrap();
    assert_eq!(in_kernel(&daemon, &id), kernel);
    assert_eq!(shown(&pod, &id).await, status);
    // What a request leaves out stays.
    let more = |linux: &mut cri::LinuxContainerResources| linux.memory_limit_in_bytes = 512 * MIB;
    update(&pod.cri, &id, more).await.unwrap();
    assert_eq!(
        in_kernel(&daemon, &id),
        ((512 * MIB).to_string(), kernel.1, kernel.2)
    );
    let later = shown(&pod, &id).await;
    assert_eq!(
        (later.memory_limit_in_bytes, later.cpu_shares),
        (512 * MIB, 512)
    );
    assert_eq!(later.cpuset_cpus, "0");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_created_container_starts_with_its_new_limits() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "created").await;
    let mut config = container("grow", tool(), &["grow", "100"]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = 32 * MIB;
    let id = pod.create(&config).await.unwrap();
    let more = |linux: &mut cri::LinuxContainerResources| {
        linux.memory_limit_in_bytes = 256 * MIB;
        linux.oom_score_adj = 500;
    };
    update(&pod.cri, &id, more).await.unwrap();
    assert_eq!(shown(&pod, &id).await.oom_score_adj, 500);
    pod.cri.start(&id).await.unwrap();
    pod.wait_log(&daemon, "grow", "touched 100 MiB").await;
    // A process has its adjustment from its start on.
    update(&pod.cri, &id, |linux| linux.oom_score_adj = 900)
        .await
        .unwrap();
    assert_eq!(shown(&pod, &id).await.oom_score_adj, 500);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_memory_limit_below_what_is_in_use_is_refused_and_nothing_changes() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "below").await;
    let id = pod.tool(&["grow", "64"]).await;
    pod.wait_log(&daemon, "grow", "touched 64 MiB").await;
    let before = (in_kernel(&daemon, &id), shown(&pod, &id).await);
    let less = |linux: &mut cri::LinuxContainerResources| {
        linux.memory_limit_in_bytes = 16 * MIB;
        linux.cpu_shares = 77;
    };
    let expected = ["16777216", "are in use"];
    refused(
        update(&pod.cri, &id, less).await,
        Code::FailedPrecondition,
        &expected,
    );
    assert_eq!((in_kernel(&daemon, &id), shown(&pod, &id).await), before);
    let status = pod.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn values_that_cannot_be_are_refused_and_nothing_changes() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "values").await;
    let id = pod.tool(&["sleep"]).await;
    let before = (in_kernel(&daemon, &id), shown(&pod, &id).await);
    type Change = fn(&mut cri::LinuxContainerResources);
    let bad: [Change; 6] = [
        |linux| linux.cpu_period = 5,
        |linux| linux.cpu_shares = -1,
        |linux| linux.memory_limit_in_bytes = -5,
        |linux| linux.cpuset_cpus = "zero".into(),
        // The kernel knows of no such processor: what was set before that is put back.
        |linux| linux.cpuset_cpus = "4000".into(),
        |linux| {
            linux.unified.insert("cgroup.procs".into(), "1".into());
        },
    ];
    for change in bad {
        let both = |linux: &mut cri::LinuxContainerResources| {
            (linux.cpu_quota, linux.memory_limit_in_bytes) = (70_000, 300 * MIB);
            change(linux);
        };
        refused(
            update(&pod.cri, &id, both).await,
            Code::InvalidArgument,
            &[],
        );
        assert_eq!((in_kernel(&daemon, &id), shown(&pod, &id).await), before);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn only_what_lives_can_be_changed_and_many_changes_come_one_after_the_other() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "lives").await;
    let more = |linux: &mut cri::LinuxContainerResources| linux.cpu_shares = 100;
    let ended = pod.tool(&["show"]).await;
    pod.cri.wait_exit(&ended).await.unwrap();
    refused(
        update(&pod.cri, &ended, more).await,
        Code::FailedPrecondition,
        &["exited"],
    );
    refused(
        update(&pod.cri, &"f".repeat(64), more).await,
        Code::NotFound,
        &["no container"],
    );
    refused(
        update(&pod.cri, "", more).await,
        Code::InvalidArgument,
        &["container_id"],
    );

    let id = pod.tool(&["sleep"]).await;
    let mut changes = tokio::task::JoinSet::new();
    for shares in 2..40 {
        let (cri, id) = (pod.cri.clone(), id.clone());
        changes.spawn(async move { update(&cri, &id, |linux| linux.cpu_shares = shares).await });
    }
    for change in changes.join_all().await {
        change.unwrap();
    }
    let last = shown(&pod, &id).await.cpu_shares;
    // So few shares are all the least weight of cgroup v2, or the one above it.
    let kernel = in_kernel(&daemon, &id).2;
    if is_v1() {
        assert_eq!(kernel, last.to_string());
    } else {
        assert!(["1", "2"].contains(&kernel.as_str()), "{kernel}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn kubelet_may_say_what_a_sandbox_will_have() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "whole").await;
    let request = |id: &str| cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        ..Default::default()
    };
    let mut runtime = pod.cri.runtime.clone();
    runtime
        .update_pod_sandbox_resources(request(&pod.id))
        .await
        .unwrap();
    let unknown = runtime
        .update_pod_sandbox_resources(request(&"f".repeat(64)))
        .await;
    refused(unknown, Code::NotFound, &["no sandbox"]);
    daemon.finish().await.unwrap();
}
