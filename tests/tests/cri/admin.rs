//! What the commands say of a running daemon: on a healthy node, with a failed pod, with one that hangs, without a daemon.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon, Options};
use coracle_tests::fuse::StallingDir;
use coracle_tests::scratch::Scratch;
use serde_json::Value;

use crate::site::{Pod, SOON, daemon_with, eventually, failing_daemon, tool};

/// A command that asks this daemon.
fn command(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(daemon::binary().unwrap());
    command.args(args).arg("--config").arg(daemon.config_path());
    command
}

fn output(daemon: &Daemon, args: &[&str]) -> Output {
    command(daemon, args).output().unwrap()
}

/// What a command that succeeds prints.
pub fn said(daemon: &Daemon, args: &[&str]) -> String {
    let output = output(daemon, args);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {wrong}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(daemon: &Daemon, args: &[&str]) -> Value {
    serde_json::from_str(&said(daemon, &[args, &["--json"]].concat())).unwrap()
}

#[tokio::test]
async fn a_healthy_node_is_ready_and_its_pods_are_listed() {
    let daemon = daemon_with(Options::default()).await;
    let socket = daemon.scratch().dir().join("run/admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pod = Pod::run(&daemon, "listed").await;
    let mut config = container("sleep", tool(), &["sleep"]);
    config.envs.push(cri::KeyValue {
        key: "TOKEN".into(),
        value: "canary-of-a-pod".into(),
    });
    let id = pod.start(&config).await;
    pod.finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    let empty = Pod::run(&daemon, "empty").await;
    let text = said(&daemon, &["status"]);
    assert!(text.starts_with("ready"), "{text}");
    let status = json(&daemon, &["status"]);
    assert_eq!(status["ready"], true);
    assert_eq!(status["pid"], daemon.pid());
    for (name, count) in [
        ("own_keepers", 2),
        ("older_keepers", 0),
        ("used_addresses", 2),
        ("owed_releases", 0),
    ] {
        assert_eq!(status[name], count, "{name}: {status}");
    }
    assert!(text.contains("2 of this build, 0 of another"), "{text}");
    let running = serde_json::json!({"state": "running", "kind": "wasm", "count": 1});
    assert!(
        status["containers"].as_array().unwrap().contains(&running),
        "{status}"
    );
    let listed = said(&daemon, &["ps"]);
    let line = listed
        .lines()
        .find(|line| line.contains("/listed"))
        .unwrap();
    for word in ["sleep", &id[..13], "wasm", "running", "iB"] {
        assert!(line.contains(word), "no {word} in {line}");
    }
    assert!(
        listed.contains("/empty") && !listed.contains("exited"),
        "{listed}"
    );
    let all = said(&daemon, &["ps", "-a"]);
    assert!(all.contains("exited 0 (Completed)"), "{all}");
    let containers = json(&daemon, &["ps", "-a"]);
    assert_eq!(containers["containers"].as_array().unwrap().len(), 3);
    let namespace = &pod.config.metadata.as_ref().unwrap().namespace;
    for name in [&format!("{namespace}/listed"), "listed", &pod.id, &id[..12]] {
        let why = said(&daemon, &["why", name]);
        let first = format!("{namespace}/listed is ready, 1 of 2 containers run\n");
        assert!(why.starts_with(&first), "{why}");
        assert!(
            why.contains("exited 0 (Completed)") && why.contains("started"),
            "{why}"
        );
        assert!(!why.contains("canary"), "{why}");
    }
    assert!(said(&daemon, &["why", "empty"]).contains(&empty.id));
    let unknown = output(&daemon, &["why", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("no pod and no container \"nobody\"")
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_failure_is_told_in_the_first_line_and_outlives_its_pod() {
    let daemon = daemon_with(Options::default()).await;
    let pod = Pod::run(&daemon, "broken").await;
    let refused = pod
        .create(&container("app", "registry.example/absent:v1", &[]))
        .await;
    refused.unwrap_err();
    let why = said(&daemon, &["why", "broken"]);
    let first = why.lines().next().unwrap();
    assert!(
        first.contains("its last failure: container app was not created:"),
        "{why}"
    );
    assert!(first.contains("registry.example/absent:v1"), "{why}");
    let id = pod.tool(&["exit", "7"]).await;
    pod.cri.wait_exit(&id).await.unwrap();
    let why = said(&daemon, &["why", "broken"]);
    let first = why.lines().next().unwrap();
    assert!(first.ends_with("exit has ended with 7 (Error)"), "{why}");
    pod.cri.remove_pod(&pod.id).await.unwrap();
    let why = said(&daemon, &["why", "broken"]);
    let first = why.lines().next().unwrap();
    assert!(
        first.contains("is gone; its last failure: container exit exited 7"),
        "{why}"
    );
    let events = said(&daemon, &["events"]);
    assert!(
        events.contains("was not created") && events.contains("exited 7 (Error)"),
        "{events}"
    );
    let lines = said(&daemon, &["events", "--json"]);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["what"], &last["failed"]),
        (&"gone".into(), &false.into())
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_hangs_is_seen_while_it_hangs() {
    let daemon = failing_daemon().await;
    daemon.plan("run.network delay:10000\n").unwrap();
    let (cri, config) = (daemon.cri(), daemon.pod("hanging"));
    let starting = tokio::spawn(async move { cri.run_pod(&config).await });
    let mut why = String::new();
    eventually("the pod is seen", || {
        let output = output(&daemon, &["why", "hanging"]);
        why = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    })
    .await;
    let first = why.lines().next().unwrap();
    assert!(
        first.ends_with(
            "/hanging is starting: its namespaces, network and keeper are being created"
        ),
        "{why}"
    );
    daemon.plan("").unwrap();
    starting.await.unwrap().unwrap();
    let why = said(&daemon, &["why", "hanging"]);
    assert!(why.contains("is ready, 0 of 0 containers run"), "{why}");
    daemon.finish().await.unwrap();
}

/// A pod that has the node's directory of logs may plant there what it likes, and root reads the logs.
#[tokio::test]
async fn a_log_that_is_a_link_a_pipe_or_anothers_file_is_not_read() {
    use std::fs;
    use std::os::unix::fs::symlink;
    let daemon = daemon_with(Options::default()).await;
    let pod = Pod::run(&daemon, "plants").await;
    let (_, output) = pod
        .finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    let explained = json(&daemon, &["why", "plants"]);
    let path = explained["pods"][0]["containers"][0]["log_path"].as_str();
    let log = std::path::PathBuf::from(path.unwrap());
    let secret = daemon.scratch().dir().join("secret");
    fs::write(&secret, "2026-01-01T00:00:00Z stdout F canary-of-root\n").unwrap();
    let directory = log.parent().unwrap();
    let (aside, elsewhere) = (
        log.with_extension("aside"),
        directory.with_extension("aside"),
    );
    let refused = |what: &str| {
        let began = Instant::now();
        let limited = Command::new("timeout")
            .args(["10", &daemon::binary().unwrap().display().to_string()])
            .args(["logs", "plants", "--config"])
            .arg(daemon.config_path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&limited.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&limited.stderr).into_owned();
        assert_eq!(limited.status.code(), Some(1), "{what}: {said:?} {wrong:?}");
        assert!(
            !said.contains("canary") && !wrong.contains("canary"),
            "{what}: {said:?}"
        );
        assert!(wrong.contains(path.unwrap()), "{what}: {wrong}");
        assert!(began.elapsed() < Duration::from_secs(9), "{what}");
        wrong
    };
    fs::rename(&log, &aside).unwrap();
    symlink(&secret, &log).unwrap();
    assert!(refused("a link").contains("not a regular file"));
    fs::remove_file(&log).unwrap();
    fs::hard_link(&secret, &log).unwrap();
    assert!(refused("a hard link").contains("another name"));
    fs::remove_file(&log).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &log,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(refused("a pipe").contains("not a regular file"));
    fs::remove_file(&log).unwrap();
    // A link in place of its directory.
    fs::rename(directory, &elsewhere).unwrap();
    symlink(&elsewhere, directory).unwrap();
    fs::write(&log, "2026-01-01T00:00:00Z stdout F canary-of-root\n").unwrap();
    assert!(refused("a linked directory").contains("sandbox.pod_logs_dir"));
    fs::remove_file(&log).unwrap();
    fs::remove_file(directory).unwrap();
    fs::rename(&elsewhere, directory).unwrap();
    fs::rename(&aside, &log).unwrap();
    assert_eq!(said(&daemon, &["logs", "plants"]), output);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn logs_are_read_by_name_and_followed_to_their_end() {
    let daemon = daemon_with(Options::default()).await;
    let pod = Pod::run(&daemon, "speaks").await;
    let (_, output) = pod
        .finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    assert_eq!(said(&daemon, &["logs", "speaks"]), output);
    let id = pod.tool(&["sleep"]).await;
    let unclear = self::output(&daemon, &["logs", "speaks"]);
    assert!(String::from_utf8_lossy(&unclear.stderr).contains("which container? show, sleep"));
    let mut follows = command(&daemon, &["logs", "--follow", "speaks", "sleep"]);
    let mut follows = follows.stdout(Stdio::piped()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        follows.try_wait().unwrap().is_none(),
        "it has ended before the container"
    );
    pod.cri.stop(&id, 0).await.unwrap();
    eventually("the end is followed", || {
        follows.try_wait().unwrap().is_some()
    })
    .await;
    let mut events = command(&daemon, &["events", "--follow"]);
    let mut events = events
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A reader that has seen enough closes the pipe.
    let mut begin = [0; 16];
    events
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut begin)
        .unwrap();
    pod.tool(&["exit", "0"]).await;
    eventually("the closed pipe is noticed", || {
        events.try_wait().unwrap().is_some()
    })
    .await;
    let ended = events.wait_with_output().unwrap();
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{ended:?}"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn without_a_daemon_the_exit_code_says_so() {
    let scratch = Scratch::new().unwrap();
    for args in [&["status"] as &[_], &["ps", "--json"], &["why", "x"]] {
        let output = Command::new(daemon::binary().unwrap())
            .args(args)
            .arg("--run")
            .arg(scratch.dir())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.contains("no daemon answers on") && text.contains("admin.sock"),
            "{text}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn the_status_of_a_node_whose_disk_hangs_says_so_and_holds_up_no_call() {
    let daemon = daemon_with(Options::default()).await;
    let quarantine = daemon.scratch().dir().join("root/quarantine");
    std::fs::create_dir_all(&quarantine).unwrap();
    let stalling = StallingDir::mount(&quarantine).unwrap();
    stalling.die();
    let asked = std::thread::scope(|scope| {
        // More than there are threads for calls.
        let asked = [(); 8].map(|()| scope.spawn(|| said(&daemon, &["status"])));
        std::thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        let others = said(&daemon, &["ps"]);
        assert!(begun.elapsed() < SOON, "{others}");
        asked.map(|asked| asked.join().unwrap())
    });
    assert!(stalling.unanswered() > 0, "nothing hangs");
    for text in asked {
        assert!(text.contains("root does not answer"), "{text}");
    }
    drop(stalling);
    eventually("the disk answers", || {
        !said(&daemon, &["status"]).contains("does not answer")
    })
    .await;
    std::fs::remove_dir(&quarantine).unwrap();
    daemon.finish().await.unwrap();
}
