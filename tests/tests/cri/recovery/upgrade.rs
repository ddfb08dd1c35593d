//! Upgrades and rollbacks: daemons and keepers of builds whose engines differ.
//!
//! The other build is a copy of this one that takes itself for another, or the binary that `CORACLE_OTHER_BUILD` names: the
//! release before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon};
use coracle_tests::procs::Role;
use coracle_tests::tools;
use cri::ContainerState::ContainerRunning;

use super::pids;
use crate::exec::exec;
use crate::linux::shell;
use crate::site::{Pod, tool};
use crate::update::{in_kernel, update};

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

/// The binary named by the environment, or a copy of the daemon's that differs in the tag which is part of every engine
/// hash.
fn other_build(daemon: &Daemon) -> PathBuf {
    if let Some(path) = std::env::var_os("CORACLE_OTHER_BUILD") {
        return path.into();
    }
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
    tools::install(&path, &bytes).unwrap();
    path
}

/// Leaves out of the daemon's configuration what `build` does not know, as whoever goes back to it has to.
fn configure_for(daemon: &Daemon, build: &Path, all: &str) {
    let file = daemon.scratch().dir().join("config.toml");
    let mut lines: Vec<&str> = all.lines().collect();
    for _ in 0..lines.len() {
        std::fs::write(&file, lines.join("\n")).unwrap();
        let out = std::process::Command::new(build)
            .args(["config", "check", file.to_str().unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        // FILE:LINE: KEY is not a setting
        let Some((place, _)) = said.split_once(" is not a setting") else {
            assert!(out.status.success(), "{said}");
            return;
        };
        let number = place.rsplit(':').nth(1).unwrap();
        lines[number.parse::<usize>().unwrap() - 1] = "";
    }
    panic!("{} knows no line of {all}", build.display());
}

/// Containers that outlive every daemon.
struct Sleepers {
    wasm: String,
    linux: String,
}

impl Sleepers {
    async fn start(daemon: &Daemon, pod: &Pod) -> Self {
        let wasm = pod.tool(&["sleep"]).await;
        pod.wait_log(daemon, "sleep", "sleeping").await;
        let linux = pod.start(&shell::sh("linux", "sleep 1000")).await;
        Self { wasm, linux }
    }

    /// They run, and execs and new limits (as many MiB of memory) reach them.
    async fn still_run(&self, daemon: &Daemon, pod: &Pod, mebibytes: i64) {
        for id in [&self.wasm, &self.linux] {
            assert_eq!(pod.cri.status(id).await.unwrap().state(), ContainerRunning);
        }
        let answer = exec(pod, &self.linux, &["echo", "here"], 10).await.unwrap();
        assert_eq!(answer.out, "here\n");
        let wanted = mebibytes << 20;
        update(&pod.cri, &self.linux, |linux| {
            linux.memory_limit_in_bytes = wanted
        })
        .await
        .unwrap();
        assert_eq!(in_kernel(daemon, &self.linux).0, wanted.to_string());
    }
}

#[tokio::test]
async fn builds_with_other_engines_take_over_running_pods_and_give_them_back() {
    let mut daemon = shell::daemon().await;
    let (old, new) = (daemon::binary().unwrap(), other_build(&daemon));
    if std::env::var_os("CORACLE_OTHER_BUILD").is_none() {
        assert_ne!(engine(&old), engine(&new));
    }
    let mut pods: BTreeMap<&str, (Pod, Sleepers)> = BTreeMap::new();
    let config = std::fs::read_to_string(daemon.scratch().dir().join("config.toml")).unwrap();
    let mut attempt = 0;
    for (build, name) in [(&old, "of-old"), (&new, "of-new"), (&old, "of-old-again")] {
        if !pods.is_empty() {
            let (keepers, guests) = (pids(&daemon, Role::Keeper), pids(&daemon, Role::Guest));
            configure_for(&daemon, build, &config);
            daemon.restart_as(build).await.unwrap();
            assert_eq!(pids(&daemon, Role::Keeper), keepers);
            assert_eq!(pids(&daemon, Role::Guest), guests);
        }
        let pod = Pod::run(&daemon, name).await;
        let sleepers = Sleepers::start(&daemon, &pod).await;
        pods.insert(name, (pod, sleepers));
        // In every pod, whichever build's keeper it has, a container keeps crashing and is made again.
        for (pod, sleepers) in pods.values() {
            for _ in 0..3 {
                attempt += 1;
                let crash = container(&format!("crash-{attempt}"), tool(), &["trap"]);
                let (status, _) = pod.finish(&daemon, &crash).await;
                let ended = (status.exit_code, status.reason.as_str());
                assert_eq!(ended, (134, "WasmTrap"));
            }
            sleepers.still_run(&daemon, pod, 64 + attempt).await;
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
