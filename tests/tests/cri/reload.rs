//! SIGHUP and systemd: the configuration is read again and nothing ends; READY comes when the socket answers.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use coracle_tests::client::Cri;
use coracle_tests::daemon::{Daemon, Options};
use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Pod, daemon_with, eventually};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Replaces text of the daemon's configuration and has it read again.
fn change(daemon: &Daemon, from: &str, to: &str) {
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(daemon.config_path(), text.replace(from, to)).unwrap();
    signal(daemon.pid(), Signal::HUP);
}

async fn says(daemon: &Daemon, words: &[&str]) {
    eventually(&format!("{words:?} in the log"), || {
        let log = daemon.log();
        log.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    })
    .await;
}

#[tokio::test]
async fn a_hangup_reloads_and_ends_nothing() {
    let daemon = daemon_with(Options {
        images: "max_layers = 100".into(),
        ..Options::default()
    })
    .await;
    let pod = Pod::run(&daemon, "reload").await;
    pod.tool(&["sleep"]).await;
    let pid = daemon.pid();
    change(&daemon, "level = \"debug\"", "level = \"info\"");
    says(&daemon, &["INFO", "read again", "log.level"]).await;
    let before = daemon.log().len();
    pod.tool(&["spin"]).await;
    let log = daemon.log()[before..].to_owned();
    assert!(
        log.contains("container started") && !log.contains("DEBUG"),
        "{log}"
    );
    // Not at once, and so it is said at each reload.
    change(&daemon, "max_layers = 100", "max_layers = 99");
    says(
        &daemon,
        &["WARN", "wait for a restart", "\"images.max_layers\"]"],
    )
    .await;
    // All or nothing: the level is not applied either.
    change(
        &daemon,
        "level = \"info\"\n",
        "level = \"debug\"\nlevle = 1\n",
    );
    says(&daemon, &["ERROR", "config.toml:", "log.levle"]).await;
    let before = daemon.log().len();
    pod.tool(&["show"]).await;
    assert!(!daemon.log()[before..].contains("DEBUG"));
    for _ in 0..100 {
        signal(pid, Signal::HUP);
    }
    change(&daemon, "levle = 1\n", "");
    says(&daemon, &["DEBUG", "call answered"]).await;
    let id = pod.tool(&["exit", "0"]).await;
    pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!(daemon.pid(), pid);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn systemd_is_told_when_the_socket_answers_and_when_the_daemon_ends() {
    let daemon = Daemon::prepare(Options::default()).unwrap();
    let path = daemon.scratch().dir().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let received = || {
        let mut message = [0; 512];
        let length = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let mut command = daemon.command().unwrap();
    let mut child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    assert!(received().starts_with("READY=1\n"));
    let cri = Cri::new(&daemon.socket());
    cri.list_images().await.unwrap();
    signal(i32::try_from(child.id()).unwrap(), Signal::TERM);
    assert!(received().starts_with("STOPPING=1\n"));
    assert!(child.wait().unwrap().success());
}
