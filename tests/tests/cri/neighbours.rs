//! Two daemons on one node, and a daemon under a parent that others use: no daemon removes anything of the other at
//! its start, and what cannot be shared is refused by name.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::{self, Role};
use tokio::sync::Mutex;

use crate::site::{Pod, daemon, eventually};

/// All second daemons have the same addresses, interfaces and ids: there is one at a time.
static SECOND: Mutex<()> = Mutex::const_new(());

/// The configuration of a second daemon in a place of its own, but for what `same` leaves as the first one has it.
fn second(daemon: &Daemon, same: &[&str]) -> PathBuf {
    let dir = daemon.scratch().dir();
    let first = fs::read_to_string(daemon.config_path()).unwrap();
    let mut text = String::new();
    for line in first.lines() {
        let key = line.split(" = ").next().unwrap_or_default();
        let own = match key {
            _ if same.contains(&key) => line.to_owned(),
            "root" | "run" | "socket" => line.replace(
                &dir.display().to_string(),
                &format!("{}/second", dir.display()),
            ),
            "interface_prefix" => "interface_prefix = \"zzy\"".to_owned(),
            "subnet" => "subnet = \"10.112.0.0/20\"".to_owned(),
            // Below those of a demo.
            "id_base" => "id_base = 2348810240".to_owned(),
            "pod_parent" => line.replace("/pods", "/others"),
            _ => line.to_owned(),
        };
        text += &own;
        text.push('\n');
    }
    let path = dir.join("second.toml");
    fs::create_dir_all(dir.join("second/run")).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// Runs a second daemon until it ends by itself or serves; gives what it said. It is ended then.
async fn run(daemon: &Daemon, config: &PathBuf) -> (bool, String) {
    let dir = daemon.scratch().dir();
    let log = dir.join("second.log");
    let file = fs::File::create(&log).unwrap();
    let mut child = Command::new(coracle_tests::daemon::binary().unwrap())
        .args(["serve", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .unwrap();
    let output = || fs::read_to_string(&log).unwrap();
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(!status.success());
            return (false, output());
        }
        // Not a word that contains it, as in a refusal.
        if output().contains(" ready socket=") {
            break;
        }
        assert!(Instant::now() < end, "it neither serves nor ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    procs::signal(child.id().cast_signed(), rustix::process::Signal::TERM);
    child.wait().unwrap();
    (true, output())
}

#[tokio::test]
async fn a_sweep_leaves_the_cgroups_of_others_under_the_same_parent() {
    let _alone = SECOND.lock().await;
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "mine").await;
    let _running = pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    let guests = || {
        let all = daemon.processes(Role::Guest).into_iter();
        all.map(|process| process.pid).collect::<Vec<_>>()
    };
    let before = guests();
    // As Docker names its containers, with a process and without.
    let foreign = ["ab".repeat(32), "cd".repeat(32)];
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    for parent in daemon.scratch().cgroup_dirs("pods") {
        for name in &foreign {
            fs::create_dir(parent.join(name)).unwrap();
        }
    }
    let pids = daemon
        .scratch()
        .cgroup_dirs(&format!("pods/{}", foreign[0]));
    for directory in pids
        .iter()
        .filter(|path| path.join("cgroup.procs").exists())
    {
        // A cpuset without processors takes nobody.
        let _ = fs::write(directory.join("cgroup.procs"), sleeper.id().to_string());
    }
    // The first daemon is away, its pod is not; then it comes back.
    daemon.kill();
    let config = second(&daemon, &["pod_parent"]);
    let (served, output) = run(&daemon, &config).await;
    assert!(served, "{output}");
    daemon.restart().await.unwrap();
    assert!(
        sleeper.try_wait().unwrap().is_none(),
        "a stranger's process was killed"
    );
    // The stranger counts as one, being in a cgroup below ours.
    let after: Vec<i32> = daemon
        .processes(Role::Guest)
        .into_iter()
        .map(|process| process.pid)
        .collect();
    assert!(before.iter().all(|pid| after.contains(pid)), "{after:?}");
    let parents = daemon.scratch().cgroup_dirs("pods");
    let gone = parents
        .iter()
        .flat_map(|parent| foreign.iter().map(move |name| parent.join(name)));
    let gone: Vec<PathBuf> = gone.filter(|path| !path.is_dir()).collect();
    assert!(gone.is_empty(), "{gone:?}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    for parent in parents {
        for name in &foreign {
            let leaf = parent.join(name);
            eventually("the stranger's cgroup is empty", || {
                fs::remove_dir(&leaf).is_ok()
            })
            .await;
        }
    }
    fs::remove_dir_all(daemon.scratch().dir().join("second")).unwrap();
    pod.cri.remove_all_pods().await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_second_daemon_on_what_a_live_one_has_is_refused_by_name() {
    let _alone = SECOND.lock().await;
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "first").await;
    for (key, named) in [
        ("pod_parent", "cgroup.pod_parent"),
        ("interface_prefix", "network.interface_prefix"),
        ("subnet", "network.subnet"),
        ("id_base", "sandbox.id_base"),
        ("run", "run"),
        ("root", "root"),
    ] {
        let config = second(&daemon, &[key]);
        let (served, output) = run(&daemon, &config).await;
        assert!(!served, "{key}: two daemons share it");
        let root = daemon.scratch().dir().join("root");
        for part in [named, &root.display().to_string()] {
            assert!(output.contains(part), "{key}: no {part:?} in {output}");
        }
    }
    let sandbox = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(
        sandbox.state(),
        coracle_proto::runtime::v1::PodSandboxState::SandboxReady
    );
    fs::remove_dir_all(daemon.scratch().dir().join("second")).unwrap();
    daemon.finish().await.unwrap();
}
