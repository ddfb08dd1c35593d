//! Promises on a node whose process 1 is systemd: the daemon as its unit, pods as scopes in its slices.
//!
//! The tests install Coracle as a node has it and so need a machine of their own: `make test-v2 INIT=systemd` runs
//! them in a guest. There is one unit, so they take turns.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[allow(dead_code, reason = "these tests use a part of what the others share")]
#[path = "cri/site.rs"]
mod site;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container, pod};
use coracle_tests::{builds, procs};
use site::{refused, tool};
use tokio::sync::{Mutex, MutexGuard};
use tonic::Code;

const SLICE: &str = "kubepods-burstable.slice";
const SLICE_CGROUP: &str = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice";
const SOCKET: &str = "/run/coracle/coracle.sock";
const HOME: &str = "/tmp/coracle-node";

static TURN: Mutex<()> = Mutex::const_new(());

/// Coracle as it is installed on a node, running as systemd's unit.
struct Node {
    cri: Cri,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    async fn start() -> Node {
        assert!(
            std::env::var_os("CORACLE_IN_GUEST").is_some(),
            "these tests install a unit; run them by `make test-v2 INIT=systemd`"
        );
        let turn = TURN.lock().await;
        fs::create_dir_all("/etc/coracle").unwrap();
        fs::create_dir_all(HOME).unwrap();
        fs::write(
            "/etc/coracle/config.toml",
            format!("root = \"{HOME}/root\"\n[log]\nlevel = \"debug\"\n"),
        )
        .unwrap();
        fs::copy(builds::binary().unwrap(), "/usr/local/bin/coracle").unwrap();
        let unit = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../shim/assets/coracle.service"
        );
        let unit = fs::read_to_string(unit).unwrap();
        let unit = unit
            .replace("@BINDIR@", "/usr/local/bin")
            .replace("@SYSCONFDIR@", "/etc");
        fs::write("/run/systemd/system/coracle.service", unit).unwrap();
        systemctl(&["daemon-reload"]).await;
        systemctl(&["start", "coracle"]).await;
        let node = Node {
            cri: Cri::new(Path::new(SOCKET)),
            _turn: turn,
        };
        node.ready().await;
        node.cri.pull(tool()).await.unwrap();
        node
    }

    async fn ready(&self) {
        self.cri.wait_ready(Duration::from_secs(30)).await.unwrap();
    }

    /// A pod in [`SLICE`] with a container that does as `args` say, running.
    async fn run(&self, name: &str, args: &[&str]) -> Running {
        let config = pod(name, &PathBuf::from(HOME).join(name), SLICE);
        fs::create_dir_all(&config.log_directory).unwrap();
        let id = self.cri.run_pod(&config).await.unwrap();
        let container = self.add(&id, &config, args).await;
        Running {
            config,
            id,
            container,
        }
    }

    async fn add(&self, pod: &str, config: &cri::PodSandboxConfig, args: &[&str]) -> String {
        let container_config = container(args[0], tool(), args);
        let id = self
            .cri
            .create(pod, &container_config, config)
            .await
            .unwrap();
        self.cri.start(&id).await.unwrap();
        id
    }

    /// The daemon's process, as systemd knows it.
    async fn pid(&self) -> i32 {
        let shown = systemctl(&["show", "--value", "-p", "MainPID", "coracle"]).await;
        shown.trim().parse().unwrap()
    }

    /// Removes what is left and holds the node to having nothing of it.
    async fn finish(self) {
        self.cri.remove_all_pods().await.unwrap();
        assert_eq!(scopes().await, "");
        let left = directories(Path::new(SLICE_CGROUP));
        assert!(left.is_empty(), "{left:?}");
        // A drain waits for its clients to hang up.
        drop(self.cri);
        systemctl(&["stop", "coracle"]).await;
        fs::remove_dir_all(HOME).unwrap();
    }
}

struct Running {
    config: cri::PodSandboxConfig,
    id: String,
    container: String,
}

impl Running {
    fn scope(&self) -> PathBuf {
        PathBuf::from(format!("{SLICE_CGROUP}/coracle-{}.scope", self.id))
    }

    /// The only process in the scope's cgroup of this name.
    fn process(&self, leaf: &str) -> i32 {
        let file = self.scope().join(leaf).join("cgroup.procs");
        let text = fs::read_to_string(&file).unwrap();
        let mut pids = text.lines();
        let pid = pids.next().unwrap_or_else(|| panic!("{file:?} is empty"));
        assert_eq!(pids.next(), None, "{text}");
        pid.parse().unwrap()
    }

    fn keeper(&self) -> i32 {
        self.process(&self.id)
    }

    fn guest(&self) -> i32 {
        self.process(&self.container)
    }
}

async fn systemctl(args: &[&str]) -> String {
    let mut command = Command::new("systemctl");
    command.args(args);
    let run = tokio::task::spawn_blocking(move || command.output());
    let run = run.await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "systemctl {args:?}: {printed}");
    String::from_utf8(run.stdout).unwrap()
}

/// The scopes of pods that systemd knows, failed ones too, a line each.
async fn scopes() -> String {
    systemctl(&[
        "list-units",
        "--all",
        "--plain",
        "--no-legend",
        "coracle-*.scope",
    ])
    .await
}

fn directories(of: &Path) -> Vec<String> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

fn is_running(status: &cri::ContainerStatus) -> bool {
    status.state == cri::ContainerState::ContainerRunning as i32
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn a_pod_is_a_delegated_scope_in_the_requested_slice() {
    let node = Node::start().await;
    let runner = node.run("scope", &["sleep"]).await;
    let mut leaves = directories(&runner.scope());
    leaves.sort();
    let mut expected = vec![runner.id.clone(), runner.container.clone()];
    expected.sort();
    assert_eq!(leaves, expected);
    assert!(procs::is_alive(runner.keeper()));
    let handed = fs::read_to_string(runner.scope().join("cgroup.subtree_control")).unwrap();
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        assert!(handed.contains(controller), "{handed}");
    }
    let unit = format!("coracle-{}.scope", runner.id);
    let shown = systemctl(&["show", "-p", "Delegate,Slice,TasksMax,ActiveState", &unit]).await;
    for fact in [
        "Delegate=yes",
        "Slice=kubepods-burstable.slice",
        "TasksMax=infinity",
        "ActiveState=active",
    ] {
        assert!(shown.lines().any(|line| line == fact), "{shown}");
    }
    node.cri.stop_pod(&runner.id).await.unwrap();
    assert!(
        !runner.scope().exists(),
        "a stopped pod's slice must be removable"
    );
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn pods_outlive_the_daemon_however_it_ends_and_a_new_systemd() {
    let node = Node::start().await;
    let runner = node.run("outlive", &["sleep"]).await;
    let (keeper, guest, daemon) = (runner.keeper(), runner.guest(), node.pid().await);
    systemctl(&["kill", "-s", "KILL", "coracle"]).await;
    while [0, daemon].contains(&node.pid().await) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.ready().await;
    systemctl(&["restart", "coracle"]).await;
    node.ready().await;
    systemctl(&["stop", "coracle"]).await;
    assert!(procs::is_alive(guest));
    systemctl(&["start", "coracle"]).await;
    node.ready().await;
    systemctl(&["daemon-reexec"]).await;
    systemctl(&["daemon-reload"]).await;
    assert_eq!((runner.keeper(), runner.guest()), (keeper, guest));
    assert!(is_running(
        &node.cri.status(&runner.container).await.unwrap()
    ));
    let other = node.add(&runner.id, &runner.config, &["exit", "3"]).await;
    assert_eq!(node.cri.wait_exit(&other).await.unwrap().exit_code, 3);
    node.cri.stop_pod(&runner.id).await.unwrap();
    assert!(!runner.scope().exists());
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn a_killed_keeper_ends_its_pod_and_leaves_no_scope() {
    let node = Node::start().await;
    let runner = node.run("keeper", &["sleep"]).await;
    let guest = runner.guest();
    procs::kill(runner.keeper());
    let status = node.cri.wait_exit(&runner.container).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "KeeperLost")
    );
    assert!(!procs::is_alive(guest));
    node.cri.remove_pod(&runner.id).await.unwrap();
    assert!(!runner.scope().exists());
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn an_out_of_memory_kill_ends_neither_its_pod_nor_the_daemon() {
    let node = Node::start().await;
    let runner = node.run("oom", &["sleep"]).await;
    let daemon = node.pid().await;
    let go = PathBuf::from(HOME).join("go");
    fs::create_dir_all(&go).unwrap();
    let mut container_config = container("grow", tool(), &["grow-when", "/go/now", "200"]);
    container_config.mounts = vec![cri::Mount {
        host_path: go.display().to_string(),
        container_path: "/go".into(),
        readonly: true,
        ..Default::default()
    }];
    let id = node
        .cri
        .create(&runner.id, &container_config, &runner.config)
        .await;
    let id = id.unwrap();
    node.cri.start(&id).await.unwrap();
    // Less than the guest is about to ask for, behind the engine's back.
    fs::write(runner.scope().join(&id).join("memory.max"), "50331648").unwrap();
    fs::write(go.join("now"), "").unwrap();
    let status = node.cri.wait_exit(&id).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    let after = node.add(&runner.id, &runner.config, &["exit", "0"]).await;
    assert_eq!(node.cri.wait_exit(&after).await.unwrap().exit_code, 0);
    assert!(is_running(
        &node.cri.status(&runner.container).await.unwrap()
    ));
    assert_eq!(node.pid().await, daemon);
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn a_kubelet_with_the_other_driver_gets_an_error() {
    let node = Node::start().await;
    let config = pod("path", &PathBuf::from(HOME).join("path"), "/kubepods/pod1");
    let answer = node.cri.run_pod(&config).await;
    refused(answer, Code::InvalidArgument, &["/kubepods/pod1", "slice"]);
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs systemd as process 1: make test-v2 INIT=systemd"]
async fn twenty_pods_at_once_come_and_go() {
    let node = Node::start().await;
    let names: Vec<String> = (0..20).map(|number| format!("many-{number}")).collect();
    let runs = names.iter().map(|name| node.run(name, &["sleep"]));
    let runners = join_all(runs).await;
    let guests: Vec<i32> = runners.iter().map(Running::guest).collect();
    assert_eq!(scopes().await.lines().count(), 20);
    for result in join_all(runners.iter().map(|runner| node.cri.remove_pod(&runner.id))).await {
        result.unwrap();
    }
    assert!(!guests.into_iter().any(procs::is_alive));
    node.finish().await;
}

/// Runs futures side by side on this task.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *slot = Some(output);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
