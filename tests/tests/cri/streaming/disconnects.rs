//! Clients that disconnect without notice: nothing of theirs stays.

use std::sync::Arc;

use coracle_tests::daemon::Daemon;
use coracle_tests::streaming::{MODERN, Remote};
use tokio::sync::Semaphore;

use super::forward::{CARRIERS, pair, servers, session};
use super::{BOTH, TTY, attach_url, exec_url, fds, open};
use crate::linux::shell;
use crate::site::{Pod, eventually};

/// How many sessions come and go.
const SESSIONS: usize = 1000;
/// How many at a time.
const AT_ONCE: usize = 16;

fn runs(args: &str) -> bool {
    let wanted: Vec<u8> = args
        .split(' ')
        .flat_map(|arg| [arg.as_bytes(), b"\0"].concat())
        .collect();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .into_iter()
        .any(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted))
}

fn share(pod: &Pod) -> Pod {
    Pod {
        cri: pod.cri.clone(),
        config: pod.config.clone(),
        id: pod.id.clone(),
    }
}

#[tokio::test]
async fn a_program_dies_with_its_client() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "dies").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for (number, wire) in MODERN.iter().enumerate() {
        for (kind, ends) in [BOTH, TTY].into_iter().enumerate() {
            let command = format!("sleep 30{number}{kind}");
            let script = format!("{command} & echo started; wait");
            let mut remote = open(&pod, &id, &["/bin/sh", "-c", &script], *wire, ends).await;
            remote.wait_for("started").await.unwrap();
            eventually("it runs", || runs(&command)).await;
            drop(remote);
            eventually(&format!("{command} is gone"), || !runs(&command)).await;
        }
    }
    daemon.finish().await.unwrap();
}

/// Its input is full and nobody takes it, so that the server does not even read.
#[tokio::test]
async fn a_client_that_goes_while_its_input_waits_is_noticed() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "full").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for (number, wire) in MODERN.iter().enumerate() {
        let command = format!("sleep 40{number}");
        let cmd: Vec<&str> = command.split(' ').collect();
        let mut remote = open(&pod, &id, &cmd, *wire, BOTH).await;
        let stdin = remote.stdin.take().unwrap();
        // More than the pipe and our 256 KiB take. What is left has to fit into the window that the kernel opens at
        // first (64 KiB): behind a closed window it would hold the end of the connection back.
        stdin.send(&vec![0; 400_000]).await.unwrap();
        eventually("it runs", || runs(&command)).await;
        drop((stdin, remote));
        eventually(&format!("{command} is gone"), || !runs(&command)).await;
    }
    daemon.finish().await.unwrap();
}

async fn settles(daemon: &Daemon, before: usize, what: &str) {
    let pid = daemon.pid();
    eventually(
        &format!("{what}: open files as before ({before}, now {})", fds(pid)),
        || fds(pid) <= before,
    )
    .await;
}

/// The issue's own number: a thousand, and every second client just goes.
#[tokio::test]
async fn a_thousand_sessions_leave_nothing() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "thousand").await;
    let mut config = shell::sh("main", "while read line; do echo $line; done; sleep 502");
    config.stdin = true;
    let id = pod.start(&config).await;
    // What the first session brings stays: threads, buffers of the allocator.
    open(&pod, &id, &["true"], MODERN[0], BOTH)
        .await
        .finish()
        .await
        .unwrap();
    let (before, room) = (fds(daemon.pid()), Arc::new(Semaphore::new(AT_ONCE)));
    let memory = super::memory_kib(daemon.pid(), "VmRSS:");
    let sessions = (0..SESSIONS).map(|number| {
        let (pod, id, room) = (share(&pod), id.clone(), Arc::clone(&room));
        tokio::spawn(async move {
            let _turn = room.acquire_owned().await.unwrap();
            one(&pod, &id, number).await;
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
    settles(&daemon, before, "a thousand sessions").await;
    eventually("no program is left", || !runs("sleep 501")).await;
    let grown = super::memory_kib(daemon.pid(), "VmRSS:").saturating_sub(memory);
    assert!(grown < 16 * 1024, "the daemon grew by {grown} KiB");
    // Its input is the keeper's: no client that went has ended it.
    assert!(!runs("sleep 502"));
    daemon.finish().await.unwrap();
}

/// Exec and attach, polite and rude, over both wires, at different moments.
async fn one(pod: &Pod, id: &str, number: usize) {
    let wire = MODERN[number % 2];
    let rude = (number / 2).is_multiple_of(2);
    match number / 4 % 4 {
        0 => {
            let url = attach_url(pod, id, BOTH).await.unwrap();
            let remote = Remote::open(&url, wire, BOTH).await.unwrap();
            if !rude {
                let _ = remote.stdin.as_ref().unwrap().send(b"word\n").await;
            }
        }
        1 => {
            let mut remote = open(pod, id, &["cat"], wire, BOTH).await;
            let stdin = remote.stdin.take().unwrap();
            stdin.send(b"said").await.unwrap();
            if !rude {
                stdin.end().await.unwrap();
                assert_eq!(remote.finish().await.unwrap().text(), "said");
            }
        }
        2 => {
            let remote = open(pod, id, &["sleep", "501"], wire, TTY).await;
            if !rude {
                remote.stdin.as_ref().unwrap().send(b"\x03").await.unwrap();
                remote.finish().await.unwrap();
            }
        }
        // The URL alone, or half of a handshake.
        _ => {
            let url = exec_url(pod, id, &["true"], BOTH).await.unwrap();
            if rude {
                let url = coracle_tests::streaming::Url::parse(&url).unwrap();
                let headers = [
                    ("Connection", "Upgrade"),
                    ("Upgrade", "SPDY/3.1"),
                    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
                ];
                coracle_tests::streaming::upgrade(&url, "POST", &headers)
                    .await
                    .unwrap();
            } else {
                assert_eq!(
                    Remote::open(&url, wire, BOTH)
                        .await
                        .unwrap()
                        .finish()
                        .await
                        .unwrap()
                        .code(),
                    Ok(0)
                );
            }
        }
    }
}

#[tokio::test]
async fn forwarded_connections_go_with_their_client() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    drop(session(&pod, CARRIERS[0]).await);
    let before = fds(daemon.pid());
    for number in 0..100 {
        let session = session(&pod, CARRIERS[number % 2]).await;
        let mut echo = pair(&session, 7000, "0").await;
        let _refused = pair(&session, 7009, "1").await;
        echo.outgoing.send(b"x").await.unwrap();
        assert_eq!(echo.incoming.next().await.unwrap(), b"x");
        // Nobody reads it; what comes after it would wait.
        let _flood = pair(&session, 7002, "2").await;
    }
    settles(&daemon, before, "a hundred forwards").await;
    daemon.finish().await.unwrap();
}
