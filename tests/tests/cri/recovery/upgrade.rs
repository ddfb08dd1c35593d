//! Upgrades and rollbacks: daemons and keepers of builds whose engines differ.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon};
use coracle_tests::procs::Role;
use cri::ContainerState::ContainerRunning;

use super::pids;
use crate::site::{Pod, daemon, tool};

/// A build's engine hash, from `version --json`.
fn engine(binary: &Path) -> String {
    let out = std::process::Command::new(binary)
        .args(["version", "--json"])
        .output()
        .unwrap();
    let version: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    version["engine"]
        .as_str()
        .unwrap_or_else(|| panic!("no engine in {version}"))
        .to_owned()
}

/// A copy of the daemon's binary that differs in the tag which is part of every engine hash.
fn other_build(daemon: &Daemon) -> PathBuf {
    let mut bytes = std::fs::read(daemon::binary().unwrap()).unwrap();
    // The number behind it is the build's own.
    let tag = b"coracle-engine-tag:";
    let places: Vec<usize> = bytes
        .windows(tag.len())
        .enumerate()
        .filter(|(_, window)| window == tag)
        .map(|(at, _)| at + tag.len())
        .collect();
    assert!(!places.is_empty(), "the engine tag is not in the binary");
    for at in places {
        bytes[at] = b'9';
    }
    let path = daemon.scratch().dir().join("coracle");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn builds_with_other_engines_take_over_running_pods_and_give_them_back() {
    let mut daemon = daemon().await;
    let (old, new) = (daemon::binary().unwrap(), other_build(&daemon));
    assert_ne!(engine(&old), engine(&new));
    let mut pods: BTreeMap<&str, (Pod, String)> = BTreeMap::new();
    let mut attempt = 0;
    for (build, name) in [(&old, "of-old"), (&new, "of-new"), (&old, "of-old-again")] {
        if !pods.is_empty() {
            let (keepers, guests) = (pids(&daemon, Role::Keeper), pids(&daemon, Role::Guest));
            daemon.restart_as(build).await.unwrap();
            assert_eq!(pids(&daemon, Role::Keeper), keepers);
            assert_eq!(pids(&daemon, Role::Guest), guests);
        }
        let pod = Pod::run(&daemon, name).await;
        let sleeper = pod.tool(&["sleep"]).await;
        pod.wait_log(&daemon, "sleep", "sleeping").await;
        pods.insert(name, (pod, sleeper));
        // In every pod, whichever build's keeper it has, a container keeps crashing and is made again.
        for (pod, sleeper) in pods.values() {
            for _ in 0..3 {
                attempt += 1;
                let (status, _) = pod
                    .finish(
                        &daemon,
                        &container(&format!("crash-{attempt}"), tool(), &["trap"]),
                    )
                    .await;
                assert_eq!(
                    (status.exit_code, status.reason.as_str()),
                    (134, "WasmTrap")
                );
            }
            assert_eq!(
                pod.cri.status(sleeper).await.unwrap().state(),
                ContainerRunning
            );
        }
    }
    // A module that no engine has seen yet, in a pod of the other build.
    let salted = coracle_tests::guests::nothing("upgrade").unwrap();
    let image = coracle_tests::push::Image::artifact(&salted);
    let pushed = image
        .push(crate::site::images().registry.host(), "upgrade", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let (status, _) = pods["of-new"]
        .0
        .finish(&daemon, &container("unseen", &pushed.reference, &[]))
        .await;
    assert_eq!((status.exit_code, status.message.as_str()), (0, ""));
    daemon.finish().await.unwrap();
}
