//! Records that cannot be used: each way in which reading one fails, for each kind, after a restart and after a reboot. The
//! pod runs on and loses nothing, its status has the reason, it recovers by itself, and it can be removed.

mod reboot;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::{self, Role};
use cri::ContainerState::{ContainerExited, ContainerRunning, ContainerUnknown};
use cri::PodSandboxState::{SandboxNotready, SandboxReady};

use crate::site::{Pod, daemon, failing_daemon, tool};

/// A pod with a running container and an ended one.
struct Fixture {
    pod: Pod,
    running: String,
    ended: String,
    guests: Vec<i32>,
}

impl Fixture {
    async fn new(daemon: &Daemon) -> Fixture {
        let pod = Pod::run(daemon, "kept").await;
        let ended = pod.tool(&["exit", "7"]).await;
        pod.cri.wait_exit(&ended).await.unwrap();
        let running = pod.tool(&["sleep"]).await;
        pod.wait_log(daemon, "sleep", "sleeping").await;
        let guests = pids(daemon, Role::Guest);
        Fixture {
            pod,
            running,
            ended,
            guests,
        }
    }

    /// A new one, after a restart of the daemon that found the record in the directory `of` unusable; and what repairs
    /// the record.
    async fn spoilt(
        daemon: &mut Daemon,
        how: &str,
        of: fn(&Fixture, &Daemon) -> PathBuf,
    ) -> (Fixture, impl FnOnce() + use<>) {
        let fixture = Fixture::new(daemon).await;
        daemon.kill();
        let repair = spoil(&of(&fixture, daemon), how);
        daemon.restart().await.unwrap();
        (fixture, repair)
    }

    fn directory(&self, daemon: &Daemon) -> PathBuf {
        daemon.scratch().dir().join("root/pods").join(&self.pod.id)
    }

    /// The directory of the running container.
    fn running_container(&self, daemon: &Daemon) -> PathBuf {
        self.container(daemon, &self.running)
    }

    fn container(&self, daemon: &Daemon, id: &str) -> PathBuf {
        self.directory(daemon).join("containers").join(id)
    }

    async fn sandbox(&self) -> cri::PodSandboxStatus {
        self.pod.cri.pod_status(&self.pod.id).await.unwrap()
    }

    async fn state(&self, id: &str) -> cri::ContainerState {
        self.pod.cri.status(id).await.unwrap().state()
    }

    async fn exit_code(&self, id: &str) -> i32 {
        self.pod.cri.status(id).await.unwrap().exit_code
    }

    /// Everything is as it was, and can be worked with.
    async fn expect_whole(&self, daemon: &Daemon, why: &str) {
        wait_for(why, async || self.sandbox().await.state() == SandboxReady).await;
        wait_for(why, async || {
            self.state(&self.running).await == ContainerRunning
        })
        .await;
        wait_for(why, async || {
            self.state(&self.ended).await == ContainerExited
        })
        .await;
        let ended = self.pod.cri.status(&self.ended).await.unwrap();
        assert_eq!(ended.exit_code, 7, "{why}");
        assert_eq!(pids(daemon, Role::Guest), self.guests, "{why}");
        self.pod.cri.stop(&self.running, 1).await.unwrap();
        assert_eq!(self.state(&self.running).await, ContainerExited, "{why}");
        self.pod.cri.remove_all_pods().await.unwrap();
    }
}

fn pids(daemon: &Daemon, role: Role) -> Vec<i32> {
    let all = daemon.processes(role).into_iter();
    all.map(|process| process.pid).collect()
}

async fn wait_for(what: &str, check: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if check().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}

/// The record of a directory; older ones, which stay until it is on the disk, are removed.
fn record(directory: &Path) -> PathBuf {
    let mut all = generations(directory);
    let newest = all.pop().unwrap();
    for older in all {
        fs::remove_file(older).unwrap();
    }
    newest
}

/// The records of a directory, oldest first.
pub(crate) fn generations(directory: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("record.")?.parse().ok()
    };
    let paths = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = paths.map(|entry| entry.path()).collect();
    all.retain(|path| number(path).is_some());
    all.sort_by_key(number);
    all
}

/// Makes the record of a directory unusable in one way and returns what repairs it.
fn spoil(directory: &Path, how: &str) -> impl FnOnce() + use<> {
    let path = record(directory);
    let bytes = fs::read(&path).unwrap();
    match how {
        "newer" => {
            let text = String::from_utf8(bytes.clone()).unwrap();
            fs::write(&path, text.replacen(" 1 ", " 2 ", 1)).unwrap();
        }
        "EISDIR" => {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        "ELOOP" => {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&path, &path).unwrap();
        }
        _ => panic!("no way to spoil a record is called {how}"),
    }
    move || {
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, bytes).unwrap();
    }
}

#[tokio::test]
async fn a_pod_whose_record_cannot_be_used_runs_on_and_comes_back() {
    let mut daemon = daemon().await;
    for how in ["newer", "EISDIR", "ELOOP"] {
        let (fixture, repair) = Fixture::spoilt(&mut daemon, how, Fixture::directory).await;
        let sandbox = fixture.sandbox().await;
        assert_eq!(sandbox.state(), SandboxNotready, "{how}");
        let why = sandbox
            .annotations
            .values()
            .any(|text| text.contains("record."));
        assert!(why, "{how}: {:?}", sandbox.annotations);
        assert_eq!(
            fixture.state(&fixture.running).await,
            ContainerUnknown,
            "{how}"
        );
        assert_eq!(pids(&daemon, Role::Guest), fixture.guests, "{how}");
        repair();
        fixture.expect_whole(&daemon, how).await;
        daemon.expect_no_leak().await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_whose_record_cannot_be_used_runs_on_and_comes_back() {
    let mut daemon = daemon().await;
    for how in ["newer", "EISDIR", "ELOOP"] {
        let (fixture, repair) = Fixture::spoilt(&mut daemon, how, Fixture::running_container).await;
        assert_eq!(fixture.sandbox().await.state(), SandboxReady, "{how}");
        let status = fixture.pod.cri.status(&fixture.running).await.unwrap();
        assert_eq!(status.state(), ContainerUnknown, "{how}");
        assert!(status.message.contains("record."), "{}", status.message);
        assert_eq!(
            fixture.state(&fixture.ended).await,
            ContainerExited,
            "{how}"
        );
        // Its pod is a pod like any other.
        let other = container("other", tool(), &["exit", "0"]);
        let (other, _) = fixture.pod.finish(&daemon, &other).await;
        assert_eq!(other.exit_code, 0);
        assert_eq!(pids(&daemon, Role::Guest), fixture.guests, "{how}");
        repair();
        fixture.expect_whole(&daemon, how).await;
        daemon.expect_no_leak().await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_used_can_be_stopped_and_removed() {
    let mut daemon = daemon().await;
    for how in ["newer", "EISDIR"] {
        // A pod whose own record is spoilt.
        let (fixture, repair) = Fixture::spoilt(&mut daemon, how, Fixture::directory).await;
        fixture.pod.cri.stop_pod(&fixture.pod.id).await.unwrap();
        assert_eq!(pids(&daemon, Role::Guest), [0; 0], "{how}");
        assert_eq!(pids(&daemon, Role::Keeper), [0; 0], "{how}");
        fixture.pod.cri.remove_pod(&fixture.pod.id).await.unwrap();
        assert_eq!(fixture.pod.cri.list_pods(None).await.unwrap().len(), 0);
        drop(repair);
        // A container of a pod that is well.
        let (fixture, repair) = Fixture::spoilt(&mut daemon, how, Fixture::running_container).await;
        fixture.pod.cri.stop(&fixture.running, 5).await.unwrap();
        assert_eq!(pids(&daemon, Role::Guest), [0; 0], "{how}");
        if how == "newer" {
            fixture.pod.cri.remove(&fixture.running).await.unwrap();
        } else {
            repair();
        }
        fixture.pod.cri.remove_all_pods().await.unwrap();
        let _ = fs::remove_dir_all(daemon.scratch().dir().join("root/quarantine"));
        daemon.expect_no_leak().await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_exit_record_that_cannot_be_used_is_no_lost_exit() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "exits").await;
    let job = pod.tool(&["count", "50", "10"]).await;
    daemon.kill();
    let exits = daemon
        .scratch()
        .dir()
        .join("root/pods")
        .join(&pod.id)
        .join("exits");
    let file = exits.join(&job);
    crate::site::eventually("the job ends", || file.exists()).await;
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    for process in daemon.processes(Role::Keeper) {
        procs::kill(process.pid);
    }
    daemon.restart().await.unwrap();
    assert_eq!(
        pod.cri.status(&job).await.unwrap().state(),
        ContainerUnknown
    );
    fs::remove_dir(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    let ended = async || pod.cri.status(&job).await.unwrap();
    wait_for("its exit is known", async || {
        ended().await.state() == ContainerExited
    })
    .await;
    assert_eq!(ended().await.exit_code, 0);
    daemon.finish().await.unwrap();
}

/// Whether a process, also one that nobody has reaped, is in a cgroup of a pod.
fn has_processes(daemon: &Daemon) -> bool {
    let pods = fs::read_dir(daemon.scratch().dir().join("root/pods")).unwrap();
    let ids: Vec<String> = pods
        .flatten()
        .map(|pod| pod.file_name().to_string_lossy().into_owned())
        .collect();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let mut cgroups = all.filter_map(|entry| fs::read_to_string(entry.path().join("cgroup")).ok());
    cgroups.any(|cgroups| ids.iter().any(|id| cgroups.contains(id)))
}

/// Ends every process of the scratch and empties the run directory, as a reboot does.
pub(crate) fn reboot(daemon: &mut Daemon) {
    daemon.kill();
    for process in procs::of_scratch(daemon.scratch()) {
        procs::kill(process.pid);
    }
    for _ in 0..6000 {
        if !has_processes(daemon) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for mount in daemon.scratch().mounts() {
        let _ = Command::new("umount").args(["-l", &mount]).status();
    }
    fs::remove_dir_all(daemon.scratch().dir().join("run")).unwrap();
}

#[tokio::test]
async fn no_errno_of_any_read_at_the_start_ends_a_pod() {
    let mut daemon = failing_daemon().await;
    let sites = [
        "recover.read-pod",
        "recover.list-containers",
        "recover.read-container",
    ];
    for errno in [libc::EIO, libc::EMFILE, libc::ENOMEM] {
        for site in sites {
            let fixture = Fixture::new(&daemon).await;
            daemon.kill();
            daemon.plan(&format!("{site} errno:{errno}\n")).unwrap();
            daemon.restart().await.unwrap();
            let why = format!("{site} with errno {errno}");
            assert_eq!(
                fixture.state(&fixture.running).await,
                ContainerUnknown,
                "{why}"
            );
            assert_eq!(pids(&daemon, Role::Guest), fixture.guests, "{why}");
            daemon.plan("").unwrap();
            fixture.expect_whole(&daemon, &why).await;
            daemon.expect_no_leak().await.unwrap();
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_torn_record_stays_while_its_pod_lives_and_is_set_aside_afterwards() {
    let mut daemon = daemon().await;
    let fixture = Fixture::new(&daemon).await;
    daemon.kill();
    let path = record(&fixture.directory(&daemon));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    // The quarantine cannot be made either.
    let quarantine = daemon.scratch().dir().join("root/quarantine");
    fs::write(&quarantine, "").unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(fixture.sandbox().await.state(), SandboxNotready);
    assert_eq!(pids(&daemon, Role::Guest), fixture.guests);
    daemon.kill();
    for process in daemon.processes(Role::Keeper) {
        procs::kill(process.pid);
    }
    crate::site::eventually("its guests die", || pids(&daemon, Role::Guest).is_empty()).await;
    daemon.restart().await.unwrap();
    assert!(
        fixture
            .container(&daemon, &fixture.running)
            .join("upper")
            .is_dir()
    );
    assert_eq!(fixture.sandbox().await.state(), SandboxNotready);
    fs::remove_file(&quarantine).unwrap();
    wait_for("it is set aside", async || {
        fixture.pod.cri.list_pods(None).await.unwrap().is_empty()
    })
    .await;
    assert!(quarantine.join(&fixture.pod.id).join("containers").is_dir());
    fs::remove_dir_all(&quarantine).unwrap();
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}
