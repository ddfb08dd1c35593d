//! Mounts that must not be made: T32.

use coracle_proto::runtime::v1 as cri;
use cri::MountPropagation::PropagationBidirectional;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use super::canary::{Canary, Fate, attempt};
use crate::linux::shell::{daemon, fresh, host_dir, mount, on_peer, program};
use crate::site::Pod;

#[tokio::test]
async fn mounts_that_climb_repeat_or_cover_the_root_are_refused_by_name() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "bad").await;
    let dir = host_dir(&daemon, "d");
    for inside in [
        "relative",
        "/a/../../../b",
        "",
        "/",
        "/../x",
        "/proc/x",
        "/a\0b",
    ] {
        let mut config = program(&fresh("c"), &["/bin/true"]);
        config.mounts = vec![mount(&dir, inside, false)];
        let fate = attempt(&daemon, &pod, &config).await;
        if !on_peer() {
            // A path that climbs is taken for what it says inside the container, or refused.
            let climbs = inside.contains("..") && matches!(fate, Fate::Ran(0, _));
            assert!(
                climbs || matches!(fate, Fate::Refused(_)),
                "{inside:?}: {fate:?}"
            );
        }
        canary.is_untouched(&daemon).await;
    }
    if !on_peer() {
        let mut twice = program("twice", &["/bin/true"]);
        twice.mounts = vec![mount(&dir, "/v", false), mount(&dir, "/v", true)];
        attempt(&daemon, &pod, &twice).await.is_refused(&["/v"]);
        let mut shared = program("shared", &["/bin/true"]);
        let private = dir.join("private");
        std::fs::create_dir(&private).unwrap();
        mount_bind(&private, &private).unwrap();
        mount_change(&private, MountPropagationFlags::PRIVATE).unwrap();
        shared.mounts = vec![mount(&private, "/shared-one", false)];
        shared.mounts[0].propagation = PropagationBidirectional as i32;
        attempt(&daemon, &pod, &shared)
            .await
            .is_refused(&["/shared-one"]);
        unmount(&private, UnmountFlags::DETACH).unwrap();
        let mut recursive = program("recursive", &["/bin/true"]);
        recursive.mounts = vec![mount(&dir, "/recursive", false)];
        recursive.mounts[0].recursive_read_only = true;
        attempt(&daemon, &pod, &recursive)
            .await
            .is_refused(&["/recursive"]);
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn five_thousand_mounts_are_too_many_or_all_there() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "many").await;
    let dir = host_dir(&daemon, "d");
    let mut config = program(
        "c",
        &["/bin/sh", "-c", "grep -c ' /v' /proc/self/mountinfo"],
    );
    config.mounts = (0..5000)
        .map(|number| mount(&dir, &format!("/v{number}"), true))
        .collect();
    match attempt(&daemon, &pod, &config).await {
        Fate::Refused(text) => assert!(text.contains("5000") || text.contains("mounts"), "{text}"),
        Fate::Ran(_, text) => assert_eq!(text.trim(), "5000"),
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_refused_mount_undoes_those_before_it() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "undo").await;
    let dir = host_dir(&daemon, "d");
    for _ in 0..10 {
        let mut config = program(&fresh("c"), &["/bin/true"]);
        config.mounts = vec![
            mount(&dir, "/first", false),
            mount(&dir, "/proc/sys", false),
        ];
        attempt(&daemon, &pod, &config).await.is_refused(&[]);
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}
