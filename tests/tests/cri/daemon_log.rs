//! What the daemon's log says: one line for each change of a pod and its containers, by name and id, and each refusal once.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options, failpoints_binary};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tokio::time::timeout;
use tonic::Code;

use crate::site::{Pod, daemon_with, refused, tool};

/// A daemon of the failpoint build that logs as nodes do.
async fn daemon() -> Daemon {
    daemon_with(Options {
        binary: Some(failpoints_binary().unwrap()),
        failpoints: Some(String::new()),
        ..Options::default()
    })
    .await
}

/// The lines about a pod of the log from `from` on, without those below level info.
fn lines(daemon: &Daemon, from: usize, pod: &str) -> Vec<String> {
    let log = daemon.log();
    let named = format!("/{pod}\"");
    let all = log[from..].lines().filter(|line| line.contains(&named));
    all.filter(|line| !line.contains("DEBUG"))
        .map(str::to_owned)
        .collect()
}

/// Holds that `what` is said by exactly one line, which has all of `words`.
#[track_caller]
fn once(lines: &[String], what: &str, words: &[&str]) {
    let found: Vec<_> = lines.iter().filter(|line| line.contains(what)).collect();
    assert_eq!(found.len(), 1, "{what}: {lines:#?}");
    for word in words {
        assert!(found[0].contains(word), "no {word} in {}", found[0]);
    }
}

#[tokio::test]
async fn each_change_is_one_line_with_names_and_times() {
    let daemon = daemon().await;
    let from = daemon.log().len();
    let pod = Pod::run(&daemon, "life").await;
    let namespace = &pod.config.metadata.as_ref().unwrap().namespace;
    let id = pod.tool(&["exit", "3"]).await;
    pod.cri.wait_exit(&id).await.unwrap();
    let stopped = pod.tool(&["sleep"]).await;
    pod.cri.stop(&stopped, 0).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    let lines = lines(&daemon, from, "life");
    let name = format!("pod=\"{namespace}/life\"");
    let sandbox = format!("sandbox={}", pod.id);
    assert!(
        lines
            .iter()
            .all(|line| line.contains(&name) && line.contains(&sandbox)),
        "{lines:#?}"
    );
    once(&lines, "sandbox ready", &["INFO", "took_ms="]);
    once(&lines, "sandbox stopped", &["INFO", "took_ms="]);
    once(&lines, "sandbox gone", &["INFO"]);
    let of = |id: &str| -> Vec<String> {
        lines
            .iter()
            .filter(|line| line.contains(id))
            .cloned()
            .collect()
    };
    let first = of(&id);
    assert!(
        first.iter().all(|line| line.contains("container=\"exit\"")),
        "{first:#?}"
    );
    once(
        &first,
        "container created",
        &["INFO", "kind=\"wasm\"", tool(), "took_ms="],
    );
    once(&first, "container started", &["INFO", "took_ms="]);
    once(
        &first,
        "container exited",
        &["INFO", "exit_code=3", "reason=\"Error\"", "ran_ms="],
    );
    once(&first, "container removed", &["INFO"]);
    once(
        &of(&stopped),
        "being stopped",
        &["INFO", "container=\"sleep\""],
    );
    once(&of(&stopped), "container exited", &["exit_code=137"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_one_line_with_its_reason() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "refused").await;
    let mut config = container("greedy", tool(), &["show"]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().cpu_period = -1;
    let from = daemon.log().len();
    refused(
        pod.create(&config).await,
        Code::InvalidArgument,
        &["cpu_period"],
    );
    refused(
        pod.cri.start(&"e".repeat(64)).await,
        Code::NotFound,
        &["no container"],
    );
    let lines = lines(&daemon, from, "refused");
    let words = [
        "INFO",
        "rpc=\"CreateContainer\"",
        "container=\"greedy\"",
        "cpu_period",
    ];
    once(&lines, "call failed", &words);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_removal_that_a_kill_interrupts_is_no_error() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "half").await;
    pod.tool(&["sleep"]).await;
    let from = daemon.log().len();
    daemon.plan("stoppod.unpin kill\n").unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap_err();
    daemon.plan("").unwrap();
    daemon.restart().await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    let lines = lines(&daemon, from, "half");
    once(
        &lines,
        "the keeper has ended; the stop of its sandbox continues",
        &["INFO"],
    );
    let errors: Vec<_> = lines.iter().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_log_that_nobody_reads_delays_no_call_and_no_end() {
    let mut daemon = daemon_with(Options::default()).await;
    daemon.kill();
    let log = daemon.scratch().dir().join("daemon.log");
    let kept = fs::read(&log).unwrap();
    fs::remove_file(&log).unwrap();
    mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let reader = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&log)
        .unwrap();
    daemon.restart().await.unwrap();
    let cri = daemon.cri();
    let calls = async {
        for number in 0..2000 {
            let missing = format!("{number:064x}");
            assert_eq!(
                cri.start(&missing).await.unwrap_err().code(),
                Code::NotFound
            );
        }
        let id = cri.run_pod(&daemon.pod("deaf")).await.unwrap();
        cri.remove_pod(&id).await.unwrap();
    };
    let answered = timeout(Duration::from_secs(60), calls).await;
    let waiting = rustix::io::ioctl_fionread(&reader).unwrap();
    drop(cri);
    let ended = match answered {
        Ok(()) => Some(daemon.terminate().await),
        Err(_) => None,
    };
    // A failure below shows the log, which must be one that can be read.
    daemon.kill();
    fs::remove_file(&log).unwrap();
    fs::write(&log, kept).unwrap();
    assert!(waiting > 56 << 10, "only {waiting} bytes wait for a reader");
    assert!(answered.is_ok(), "the calls wait for whoever reads the log");
    assert!(ended.unwrap().unwrap().success());
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}
