//! Races: a container swaps a directory for a link while another is being built: T02, T31.

use std::os::unix::fs::symlink;

use super::canary::{Canary, Fate, attempt};
use crate::linux::shell::{daemon, fresh, host_dir, mount, program, sh};
use crate::site::Pod;

/// Containers that are built while somebody swaps.
const ROUNDS: usize = 60;

/// T02, CVE-2021-30465: a mount into a shared volume lands in the container, whoever renames what meanwhile.
#[tokio::test]
async fn a_swapped_mount_point_never_leads_to_the_host() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "swap").await;
    let (volume, inner) = (host_dir(&daemon, "volume"), host_dir(&daemon, "inner"));
    std::fs::create_dir_all(volume.join("a/mnt")).unwrap();
    symlink(canary.dir().join("x"), volume.join("b")).unwrap();
    std::fs::write(inner.join("mine"), "").unwrap();
    let mut racer = program("racer", &["/bin/probe", "race", "/v", "a", "b"]);
    racer.mounts = vec![mount(&volume, "/v", false)];
    pod.start(&racer).await;
    pod.wait_log(&daemon, "racer", "racing").await;
    let secret = canary.dir().join("secret");
    let (mut ran, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let text = format!(
            "cat /proc/self/mountinfo | cut -d ' ' -f 5; cat {} /v/a/../secret /v/b/../secret",
            secret.display()
        );
        let mut config = sh(&fresh("c"), &text);
        config.mounts = vec![
            mount(&volume, "/v", false),
            mount(&inner, "/v/a/mnt", false),
        ];
        match attempt(&daemon, &pod, &config).await {
            Fate::Ran(_, text) => {
                assert!(
                    !text
                        .lines()
                        .any(|line| line.starts_with("/tmp/coracle-test")
                            && line.ends_with("canary")),
                    "{text}"
                );
                ran += 1;
            }
            Fate::Refused(_) => refused += 1,
        }
    }
    assert_eq!(ran + refused, ROUNDS);
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T31: a source behind a link that leads to nothing is refused and not made; one that is swapped is one of the two, never
/// a mixture.
#[tokio::test]
async fn a_source_is_resolved_once() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "source").await;
    let base = host_dir(&daemon, "base");
    for (name, text) in [("one", "first"), ("other", "second")] {
        std::fs::create_dir(base.join(name)).unwrap();
        std::fs::write(base.join(name).join("which"), text).unwrap();
    }
    let mut racer = program("racer", &["/bin/probe", "race", "/v", "one", "other"]);
    racer.mounts = vec![mount(&base, "/v", false)];
    pod.start(&racer).await;
    pod.wait_log(&daemon, "racer", "racing").await;
    for _ in 0..ROUNDS / 3 {
        let mut config = sh(&fresh("c"), "cat /v/which; cat /v/which");
        config.mounts = vec![mount(&base.join("one"), "/v", false)];
        let fate = attempt(&daemon, &pod, &config).await;
        assert!(
            ["firstfirst", "secondsecond"].contains(&fate.text().trim_end()),
            "{fate:?}"
        );
    }
    let dangling = base.join("dangling");
    std::os::unix::fs::symlink(canary.dir().join("x/absent"), &dangling).unwrap();
    let mut config = program("absent", &["/bin/true"]);
    config.mounts = vec![mount(&dangling, "/v", false)];
    let fate = attempt(&daemon, &pod, &config).await;
    if !crate::linux::shell::on_peer() {
        fate.is_refused(&["dangling"]);
        canary.is_untouched(&daemon).await;
    }
    daemon.finish().await.unwrap();
}
