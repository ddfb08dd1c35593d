//! What an operator does to a running daemon: settings that change, levels of the log, tasks, the watchdog, and the archive
//! for a bug report.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container, image};
use coracle_tests::daemon::{self, Daemon, Options};
use coracle_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Pod, daemon_with, eventually, failing_daemon, refused, tool};

/// A command for this daemon.
fn output(daemon: &Daemon, args: &[&str]) -> Output {
    let mut command = Command::new(daemon::binary().unwrap());
    let command = command.args(args).arg("--config").arg(daemon.config_path());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that succeeds prints.
fn printed(daemon: &Daemon, args: &[&str]) -> String {
    let output = output(daemon, args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Writes a drop-in of the daemon's configuration.
fn drop_in(daemon: &Daemon, name: &str, text: &str) {
    let directory = daemon.scratch().dir().join("conf.d");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(name), text).unwrap();
}

/// A container with a mount whose path on the node does not exist.
fn with_missing_path(daemon: &Daemon, name: &str) -> cri::ContainerConfig {
    let mut config = container(name, tool(), &["sleep"]);
    config.mounts.push(cri::Mount {
        container_path: "/data".into(),
        host_path: daemon.scratch().dir().join(name).display().to_string(),
        ..cri::Mount::default()
    });
    config
}

#[tokio::test]
async fn a_reload_says_what_holds_and_what_waits_and_what_is_wrong() {
    let daemon = daemon_with(Options::default()).await;
    let pod = Pod::run(&daemon, "reloaded").await;
    pod.create(&with_missing_path(&daemon, "before"))
        .await
        .unwrap();
    assert_eq!(printed(&daemon, &["reload"]), "nothing has changed\n");
    let first = "[sandbox]\ncreate_host_paths = false\n[images]\nmax_layers = 99\n\
                 [handlers.coracle]\nannotations = []\n[log]\ntargets = { h2 = \"info\" }\n";
    drop_in(&daemon, "10-first.toml", first);
    let waits =
        "waiting for a restart of the daemon, which pods do not notice: images.max_layers\n";
    let held =
        "in force now: handlers.coracle.annotations, log.targets.h2, sandbox.create_host_paths\n";
    assert_eq!(printed(&daemon, &["reload"]), format!("{held}{waits}"));
    let created = pod.create(&with_missing_path(&daemon, "after")).await;
    refused(created, tonic::Code::InvalidArgument, &["/data"]);
    assert_eq!(printed(&daemon, &["reload"]), waits);
    // All or nothing, and the command finds the daemon although the configuration is wrong.
    drop_in(
        &daemon,
        "20-second.toml",
        "[sandbox]\ncreate_host_paths = true\ncreate_paths = 1\n",
    );
    let output = output(&daemon, &["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let wrong = "conf.d/20-second.toml:3: sandbox.create_paths is not a setting";
    assert!(
        text(&output.stderr).contains(wrong),
        "{}",
        text(&output.stderr)
    );
    assert!(daemon.log().contains(wrong));
    refused(
        pod.create(&with_missing_path(&daemon, "refused")).await,
        tonic::Code::InvalidArgument,
        &["/data"],
    );
    let metrics = &dump(&daemon)["metrics.txt"];
    assert!(
        metrics.contains("coracle_config_last_reload_successful 0"),
        "{metrics}"
    );
    drop_in(
        &daemon,
        "20-second.toml",
        "[sandbox]\ncreate_host_paths = true\n",
    );
    let both = printed(&daemon, &["reload"]);
    assert!(
        both.starts_with("in force now: sandbox.create_host_paths\n"),
        "{both}"
    );
    pod.create(&with_missing_path(&daemon, "again"))
        .await
        .unwrap();
    let metrics = &dump(&daemon)["metrics.txt"];
    assert!(
        metrics.contains("coracle_config_last_reload_successful 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("coracle_config_last_reload_success_timestamp_seconds 1"),
        "{metrics}"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_hundred_hangups_under_load_drop_nothing() {
    let daemon = daemon_with(Options::default()).await;
    let pid = daemon.pid();
    let running = {
        let (cri, pods) = (
            daemon.cri(),
            (0..12).map(|number| daemon.pod(&format!("load-{number}"))),
        );
        let pods: Vec<_> = pods.collect();
        tokio::spawn(async move {
            for config in pods {
                let id = cri.run_pod(&config).await.unwrap();
                let container = container("show", tool(), &["show"]);
                let container = cri.create(&id, &container, &config).await.unwrap();
                cri.start(&container).await.unwrap();
                assert_eq!(cri.wait_exit(&container).await.unwrap().exit_code, 0);
                cri.remove_pod(&id).await.unwrap();
            }
        })
    };
    for number in 0..100 {
        // Every tenth of them is wrong.
        let level = if number % 10 == 0 {
            "loud"
        } else {
            ["info", "debug"][number % 2]
        };
        drop_in(&daemon, "1.toml", &format!("log.level = \"{level}\"\n"));
        signal(pid, Signal::HUP);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.await.unwrap();
    // Signals that come together are one: the last two are waited for.
    for (level, said) in [
        ("loud", "the configuration is wrong"),
        ("debug", "was read again"),
    ] {
        let before = daemon.log().len();
        drop_in(&daemon, "1.toml", &format!("log.level = \"{level}\"\n"));
        signal(pid, Signal::HUP);
        eventually(said, || daemon.log()[before..].contains(said)).await;
    }
    assert_eq!(daemon.pid(), pid);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_log_level_changes_for_a_time_and_for_single_modules() {
    let daemon = daemon_with(Options {
        quiet: true,
        ..Options::default()
    })
    .await;
    let pod = Pod::run(&daemon, "quiet").await;
    assert!(!daemon.log().contains("DEBUG"), "{}", daemon.log());
    let long = [
        "log-level",
        "debug",
        "--target",
        "coracle_cri",
        "--for",
        "1h",
    ];
    assert_eq!(printed(&daemon, &long), "warn\ncoracle_cri debug\n");
    pod.tool(&["sleep"]).await;
    eventually("lines of one module", || daemon.log().contains("DEBUG")).await;
    let others = daemon.log();
    let others = others
        .lines()
        .filter(|line| line.contains("DEBUG") && !line.contains("coracle_cri"));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
    // A reload does not end what an operator has changed.
    printed(&daemon, &["reload"]);
    assert_eq!(printed(&daemon, &["log-level", "configured"]), "warn\n");
    assert_eq!(
        printed(&daemon, &["log-level", "info", "--for", "1s"]),
        "info\n"
    );
    eventually("the end of the change", || {
        daemon.log().contains("configured one again")
    })
    .await;
    let before = daemon.log().len();
    pod.tool(&["spin"]).await;
    let after = daemon.log()[before..].to_owned();
    assert!(
        !after.contains("INFO") && !after.contains("DEBUG"),
        "{after}"
    );
    for wrong in [
        &["log-level", "loud"] as &[_],
        &["log-level", "info", "--for", "10"],
    ] {
        assert_eq!(output(&daemon, wrong).status.code(), Some(2), "{wrong:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lines_for_the_journal_have_their_priority() {
    let daemon = Daemon::prepare(Options::default()).unwrap();
    let journal = daemon.scratch().dir().join("journal");
    let file = std::fs::File::create(&journal).unwrap();
    let facts = file.metadata().unwrap();
    let mut command = daemon.command().unwrap();
    command.env("JOURNAL_STREAM", format!("{}:{}", facts.dev(), facts.ino()));
    let mut child = command.stderr(file).spawn().unwrap();
    daemon
        .cri()
        .wait_ready(Duration::from_secs(60))
        .await
        .unwrap();
    let config = daemon.pod("no-such-image");
    let id = daemon.cri().run_pod(&config).await.unwrap();
    let absent = container("app", "registry.example/absent:v1", &[]);
    daemon
        .cri()
        .create(&id, &absent, &config)
        .await
        .unwrap_err();
    daemon.cri().remove_pod(&id).await.unwrap();
    signal(i32::try_from(child.id()).unwrap(), Signal::TERM);
    assert!(child.wait().unwrap().success());
    let lines = std::fs::read_to_string(&journal).unwrap();
    for line in lines.lines() {
        let level = ["ERROR", "WARN", "INFO", "DEBUG"].map(|level| line.contains(level));
        let priority = ["<3>", "<4>", "<6>", "<7>"].map(|prefix| line.starts_with(prefix));
        assert!(
            level
                .iter()
                .zip(priority)
                .any(|(level, priority)| *level && priority),
            "{line}"
        );
    }
    for priority in ["<6>", "<7>"] {
        assert!(lines.contains(priority), "no {priority} in {lines}");
    }
}

/// systemd's end of the socket for messages, and a daemon that it watches. The daemon is ready.
fn watched(daemon: &Daemon) -> (UnixDatagram, Child) {
    let path = daemon.scratch().dir().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let mut command = daemon.command().unwrap();
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "1000000");
    let log = std::fs::File::create(daemon.scratch().dir().join("watched.log")).unwrap();
    let child = command.stderr(log).spawn().unwrap();
    let ready = next_message(&systemd, 60).unwrap();
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    (systemd, child)
}

/// The next message to systemd within so many seconds.
fn next_message(systemd: &UnixDatagram, seconds: u64) -> Option<String> {
    let limit = Some(Duration::from_secs(seconds));
    systemd.set_read_timeout(limit).unwrap();
    let mut message = [0; 512];
    let length = systemd.recv(&mut message).ok()?;
    Some(text(&message[..length]))
}

/// All pods there are, so that nobody answers but the daemon itself.
#[tokio::test]
async fn pods_that_hang_have_the_daemon_neither_silent_nor_started_again() {
    let options = Options {
        failpoints: Some(String::new()),
        binary: Some(daemon::failpoints_binary().unwrap()),
        ..Options::default()
    };
    let mut daemon = daemon_with(options).await;
    let mut ids = Vec::new();
    for name in ["hung-1", "hung-2", "hung-3"] {
        let pod = Pod::run(&daemon, name).await;
        ids.push(pod.tool(&["sleep"]).await);
    }
    daemon.terminate().await.unwrap();
    let (systemd, mut child) = watched(&daemon);
    // Their drivers wait for a slow disk.
    daemon.plan("exit.record delay:12000").unwrap();
    let held = || {
        let reached = daemon.reached();
        reached.iter().filter(|site| *site == "exit.record").count()
    };
    let before = held();
    let stop = |id: String| {
        let cri = Cri::new(&daemon.socket());
        tokio::spawn(async move { cri.stop(&id, 0).await })
    };
    let stopping: Vec<_> = ids.into_iter().map(stop).collect();
    eventually("all pods hang", || held() >= before + 3).await;
    // What was sent before does not count.
    systemd.set_nonblocking(true).unwrap();
    while next_message(&systemd, 1).is_some() {}
    systemd.set_nonblocking(false).unwrap();
    for _ in 0..6 {
        let message = next_message(&systemd, 60);
        assert_eq!(message.as_deref(), Some("WATCHDOG=1\n"));
    }
    let hang = stopping.iter().all(|stopping| !stopping.is_finished());
    assert!(hang, "the pods do not hang");
    for stopping in stopping {
        stopping.await.unwrap().unwrap();
    }
    signal(i32::try_from(child.id()).unwrap(), Signal::TERM);
    assert!(child.wait().unwrap().success());
    let log = std::fs::read_to_string(daemon.scratch().dir().join("watched.log")).unwrap();
    for pod in ["/hung-1", "/hung-2", "/hung-3"] {
        assert!(log.contains(pod), "{log}");
    }
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_stopped_daemon_is_silent_and_its_successor_finds_the_pods() {
    let mut daemon = daemon_with(Options::default()).await;
    let pod = Pod::run(&daemon, "watched").await;
    let id = pod.tool(&["sleep"]).await;
    let before = pod.cri.status(&id).await.unwrap();
    daemon.terminate().await.unwrap();
    let began = Instant::now();
    let (systemd, mut child) = watched(&daemon);
    let next = |limit: u64| next_message(&systemd, limit);
    for _ in 0..4 {
        assert_eq!(next(60).as_deref(), Some("WATCHDOG=1\n"));
    }
    // At half of the interval, and the first one at once.
    assert!(
        began.elapsed() > Duration::from_millis(1300),
        "{:?}",
        began.elapsed()
    );
    let pid = i32::try_from(child.id()).unwrap();
    signal(pid, Signal::HUP);
    let mut messages = String::new();
    while !messages.contains("READY=1\n") {
        messages += &next(60).unwrap();
    }
    assert!(
        messages.contains("RELOADING=1\nMONOTONIC_USEC="),
        "{messages}"
    );
    signal(pid, Signal::STOP);
    while next(2).is_some() {}
    // What systemd does to it then.
    signal(pid, Signal::ABORT);
    signal(pid, Signal::CONT);
    assert!(!child.wait().unwrap().success());
    daemon.restart().await.unwrap();
    let after = Cri::new(&daemon.socket()).status(&id).await.unwrap();
    assert_eq!(after.state, cri::ContainerState::ContainerRunning as i32);
    assert_eq!(
        (after.started_at, after.created_at),
        (before.started_at, before.created_at)
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_hangs_is_listed_for_the_command_and_for_the_signal() {
    let daemon = failing_daemon().await;
    let idle = Pod::run(&daemon, "idle").await;
    daemon.plan("run.network delay:12000\n").unwrap();
    let (cri, config) = (daemon.cri(), daemon.pod("hanging"));
    let starting = tokio::spawn(async move { cri.run_pod(&config).await });
    eventually("the pod waits", || {
        printed(&daemon, &["debug", "tasks"])
            .contains("its namespaces, network and keeper are being created")
    })
    .await;
    let listed = printed(&daemon, &["debug", "tasks"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines[0], "2 pods, 1 wait");
    assert!(
        lines[2].contains("/hanging") && lines[2].contains("starting"),
        "{listed}"
    );
    assert!(
        lines[3].contains("/idle") && lines[3].ends_with('-'),
        "{listed}"
    );
    signal(daemon.pid(), Signal::USR1);
    eventually("the tasks are in the log", || {
        let log = daemon.log();
        log.contains("/hanging has been starting for") && log.contains("listed for SIGUSR1")
    })
    .await;
    assert!(!daemon.log().contains("/idle has been"));
    daemon.plan("").unwrap();
    starting.await.unwrap().unwrap();
    idle.cri.remove_pod(&idle.id).await.unwrap();
    daemon.finish().await.unwrap();
}

/// The files of `coracle debug dump`, by name.
fn dump(daemon: &Daemon) -> BTreeMap<String, String> {
    let path = daemon.scratch().dir().join("dump.tar.zst");
    printed(daemon, &["debug", "dump", "-o", path.to_str().unwrap()]);
    let files = unpack(&path);
    std::fs::remove_file(path).unwrap();
    files
}

fn unpack(path: &Path) -> BTreeMap<String, String> {
    let packed = std::fs::File::open(path).unwrap();
    assert_eq!(packed.metadata().unwrap().mode() & 0o777, 0o600);
    let mut archive = tar::Archive::new(zstd::stream::Decoder::new(packed).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry
            .path()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

#[tokio::test]
async fn a_dump_has_what_a_bug_report_needs_and_no_secret_of_a_pod() {
    let daemon = daemon_with(Options::default()).await;
    let canaries = [
        "canary-env",
        "canary-arg",
        "canary-pull",
        "canary-annotation",
        "canary-label",
    ];
    let mut config = daemon.pod("secretive");
    config
        .annotations
        .insert("example.com/a".into(), canaries[3].into());
    config.labels.insert("l".into(), canaries[4].into());
    let pod = Pod::run_config(&daemon, config).await;
    for (name, extra) in [("runs", "sleep"), ("failed", "no-such-verb")] {
        let mut config = container(name, tool(), &[extra, canaries[1]]);
        config.envs.push(cri::KeyValue {
            key: "TOKEN".into(),
            value: canaries[0].into(),
        });
        config
            .annotations
            .insert("example.com/b".into(), canaries[3].into());
        pod.start(&config).await;
    }
    for reference in [tool(), "registry.example/absent:v1"] {
        let request = cri::PullImageRequest {
            image: Some(image(reference)),
            auth: Some(cri::AuthConfig {
                username: "user".into(),
                password: canaries[2].into(),
                ..cri::AuthConfig::default()
            }),
            sandbox_config: None,
        };
        // The second one has no registry.
        let _ = daemon.cri().images.clone().pull_image(request).await;
    }
    let files = dump(&daemon);
    let has = [
        ("status.json", "\"ready\":true"),
        ("containers.json", "secretive"),
        ("events.jsonl", "secretive"),
        ("tasks.json", "secretive"),
        ("log.txt", "container started"),
        ("metrics.txt", "coracle_build_info"),
        ("config.toml", "log.level = \"debug\""),
        ("check.txt", "overlayfs"),
        ("version.txt", "coracle "),
        ("node-mounts.txt", daemon.scratch().dir().to_str().unwrap()),
        ("node-kernel.txt", "Linux"),
    ];
    for (name, part) in has {
        let file = files
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
        assert!(file.contains(part), "no {part} in {name}: {file}");
    }
    for (name, text) in &files {
        for canary in canaries {
            assert!(!text.contains(canary), "{canary} is in {name}");
        }
    }
    // The file is never one that is there.
    let path = daemon.scratch().dir().join("there");
    std::fs::write(&path, "mine").unwrap();
    let refused = output(&daemon, &["debug", "dump", "-o", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_dump_without_a_daemon_says_so_and_has_the_rest() {
    let scratch = Scratch::new().unwrap();
    let path = scratch.dir().join("dump.tar.zst");
    let output = Command::new(daemon::binary().unwrap())
        .args(["debug", "dump", "--run"])
        .arg(scratch.dir())
        .arg("-o")
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.lines()
            .next()
            .unwrap()
            .contains("no daemon answers on"),
        "{said}"
    );
    let files = unpack(&path);
    assert!(
        files["daemon-problem.txt"].contains("admin.sock"),
        "{files:?}"
    );
    assert!(files["check.txt"].contains("overlayfs"), "{files:?}");
}
