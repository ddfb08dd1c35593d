//! Promises of the packages: the Debian one, the archive and the rpm, as `make deb`, `tarball` and `rpm` build them.
//!
//! `make test-deb` builds two revisions of the first and runs the test in a chroot; `make test-deb INIT=systemd` the one on a
//! node with systemd, in a guest. `make test-tarball` and `make test-rpm` run the others.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "package/archive.rs"]
mod archive;
#[path = "package/rpm.rs"]
mod rpm;
#[allow(dead_code, reason = "these tests use a part of what the others share")]
#[path = "cri/site.rs"]
mod site;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container, pod};
use coracle_tests::scratch::Scratch;
use coracle_tests::{builds, procs};
use site::tool;

const SOCKET: &str = "/run/coracle/coracle.sock";
const CONFIG: &str = "/etc/coracle/config.toml";
/// On the guest's disk: its root is an overlay, which the daemon's root directory must not be on.
const HOME: &str = "/tmp/coracle-node";
const SLICE: &str = "kubepods-burstable.slice";
/// Pods that run through all changes of the package.
const PODS: usize = 50;

/// The package of this revision, built by `make test-deb`.
fn package(revision: u32) -> PathBuf {
    built("deb", &format!("-{revision}_"))
}

/// The one file of the target directory's `directory` whose name has `part`.
fn built(directory: &str, part: &str) -> PathBuf {
    let directory = builds::target_dir().unwrap().join(directory);
    let files = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap());
    let mut found: Vec<PathBuf> = files
        .filter(|file| file.file_name().to_string_lossy().contains(part))
        .map(|file| file.path())
        .collect();
    assert_eq!(found.len(), 1, "{directory:?}: {found:?}");
    found.remove(0)
}

/// Runs a command to its end; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(
        ran.status.success(),
        "{program} {arguments:?}: {}\n{out}\n{err}",
        ran.status
    );
    out.into_owned()
}

fn install(package: &Path) {
    let package = package.to_str().unwrap();
    run("dpkg", &["--force-unsafe-io", "--install", package]);
}

fn property(name: &str) -> String {
    let shown = run("systemctl", &["show", "--value", "-p", name, "coracle"]);
    shown.trim().to_owned()
}

#[test]
#[ignore = "needs the package: make test-deb"]
fn in_a_chroot_the_package_leaves_what_an_administrator_made_and_nothing_else() {
    let scratch = Scratch::new().unwrap();
    let root = scratch.dir().join("package");
    fs::create_dir(&root).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/package/chroot.sh");
    let (older, newer) = (package(1), package(2));
    let mut arguments = vec!["--mount", "--propagation", "private", "bash"];
    arguments.extend([&script, &root, &older, &newer].map(|path| path.to_str().unwrap()));
    run("unshare", &arguments);
}

/// The pods that run while the package changes, with the processes of their containers.
struct Pods {
    cri: Cri,
    /// Sandboxes and containers.
    running: Vec<(String, String)>,
    pids: Vec<i32>,
}

impl Pods {
    async fn start() -> Self {
        let cri = Cri::new(Path::new(SOCKET));
        cri.wait_ready(Duration::from_secs(60)).await.unwrap();
        cri.pull(tool()).await.unwrap();
        let mut running = Vec::new();
        for number in 0..PODS {
            running.push(Self::add(&cri, &format!("kept-{number}")).await);
        }
        let pids = Self::processes();
        assert!(pids.len() >= 2 * PODS, "{pids:?}");
        Self { cri, running, pids }
    }

    async fn add(cri: &Cri, name: &str) -> (String, String) {
        let config = pod(name, &PathBuf::from(HOME).join(name), SLICE);
        fs::create_dir_all(&config.log_directory).unwrap();
        let sandbox = cri.run_pod(&config).await.unwrap();
        let container_config = container("sleep", tool(), &["sleep"]);
        let id = cri.create(&sandbox, &container_config, &config).await;
        let id = id.unwrap();
        cri.start(&id).await.unwrap();
        (sandbox, id)
    }

    /// Keepers and guests, by the cgroups of the pods' scopes.
    fn processes() -> Vec<i32> {
        let slice = Path::new("/sys/fs/cgroup/kubepods.slice").join(SLICE);
        let mut pids = Vec::new();
        for scope in fs::read_dir(slice).unwrap() {
            for leaf in fs::read_dir(scope.unwrap().path()).into_iter().flatten() {
                let procs = leaf.unwrap().path().join("cgroup.procs");
                let text = fs::read_to_string(procs).unwrap_or_default();
                pids.extend(text.lines().map(|pid| pid.parse::<i32>().unwrap()));
            }
        }
        pids.sort_unstable();
        pids
    }

    /// None has ended and the daemon of now knows all, and can start another.
    async fn go_on(&self, name: &str) {
        self.cri.wait_ready(Duration::from_secs(60)).await.unwrap();
        assert_eq!(Self::processes(), self.pids);
        for (_, container) in &self.running {
            let status = self.cri.status(container).await.unwrap();
            assert_eq!(status.state, cri::ContainerState::ContainerRunning as i32);
        }
        let (sandbox, _) = Self::add(&self.cri, name).await;
        self.cri.remove_pod(&sandbox).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs systemd as process 1 and the package: make test-deb INIT=systemd"]
async fn with_systemd_fifty_pods_go_on_while_the_package_changes() {
    assert!(
        std::env::var_os("CORACLE_IN_GUEST").is_some(),
        "this test installs a package; run it by `make test-deb INIT=systemd`"
    );
    // The guest has this machine's files: where that is a container, they forbid packages to restart anything.
    let _ = fs::remove_file("/usr/sbin/policy-rc.d");
    install(&package(1));
    assert_eq!(property("ActiveState"), "inactive");
    assert_eq!(property("UnitFileState"), "disabled");
    fs::create_dir_all(HOME).unwrap();
    let config = format!("root = \"{HOME}/root\"\n");
    fs::write(CONFIG, &config).unwrap();
    run("systemctl", &["start", "coracle"]);
    let pods = Pods::start().await;

    let mut daemon = property("MainPID");
    for (revision, name) in [(2, "after-the-upgrade"), (1, "after-the-rollback")] {
        install(&package(revision));
        let restarted = property("MainPID");
        assert_ne!(
            restarted, daemon,
            "the daemon is still of the other package"
        );
        daemon = restarted;
        pods.go_on(name).await;
        assert_eq!(fs::read_to_string(CONFIG).unwrap(), config);
    }

    run("dpkg", &["--remove", "coracle"]);
    assert!(pods.pids.iter().all(|pid| procs::is_alive(*pid)));
    install(&package(2));
    run("systemctl", &["start", "coracle"]);
    pods.go_on("after-the-removal").await;
    pods.cri.remove_all_pods().await.unwrap();
    assert!(Pods::processes().is_empty());

    run("dpkg", &["--purge", "coracle"]);
    assert_eq!(property("LoadState"), "not-found");
    for path in [
        "/etc/coracle",
        "/usr/bin/coracle",
        "/run/coracle",
        "/var/lib/coracle",
    ] {
        assert!(!Path::new(path).exists(), "{path} is still there");
    }
    fs::remove_dir_all(HOME).unwrap();
}
