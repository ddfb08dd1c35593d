//! What sessions together may take from the node: one tenant's leave room for another's.

use std::time::{Duration, Instant};

use coracle_tests::client::TIMEOUT;
use coracle_tests::streaming::spdy::Session;
use coracle_tests::streaming::websocket::handshake;
use coracle_tests::streaming::{MODERN, Url};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::forward::{CARRIERS, session};
use super::{BOTH, OUT, exec_url, forward_url, memory_kib, open};
use crate::linux::shell;
use crate::site::Pod;

/// Sessions that send more than anybody takes.
const GREEDY: usize = 64;
/// A message of that size is accepted.
const MESSAGE: usize = 4 << 20;
/// Most that the daemon grows by, beside what the sessions themselves take. KiB.
const GROWTH: u64 = 128 << 10;
/// Most sessions of a pod.
const OF_POD: usize = 256;

/// Sends one message of `MESSAGE` bytes and nearly all of a second one, or what the server takes of it.
async fn send_two(url: &str) -> TcpStream {
    let url = Url::parse(url).unwrap();
    let answer = handshake(&url, "v4.channel.k8s.io", &[]).await.unwrap();
    assert_eq!(answer.status, 101, "{}", answer.head);
    let mut socket = answer.socket;
    let length = (MESSAGE as u64).to_be_bytes();
    // Masked by zeros; the first byte of the text is the channel of standard input.
    let message = [&[0x82, 0xff][..], &length, &[0; 4], &vec![0; MESSAGE]].concat();
    let all = [&message[..], &message[..message.len() - 1]].concat();
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.write_all(&all)).await;
    socket
}

#[tokio::test]
async fn clients_that_send_more_than_is_taken_do_not_fill_the_daemon() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "greedy").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let before = memory_kib(daemon.pid(), "VmRSS:");
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..GREEDY {
        let url = exec_url(&pod, &id, &["sleep", "600"], BOTH).await.unwrap();
        sending.spawn(async move { send_two(&url).await });
    }
    let sockets = sending.join_all().await;
    let after = memory_kib(daemon.pid(), "VmRSS:");
    assert!(after < before + GROWTH, "from {before} KiB to {after} KiB");
    let other = Pod::run(&daemon, "other").await;
    let other_id = other.start(&shell::sh("main", "sleep 1000")).await;
    for wire in MODERN {
        let ran = open(&other, &other_id, &["echo", "works"], *wire, OUT).await;
        assert_eq!(ran.finish().await.unwrap().text(), "works\n");
    }
    drop(sockets);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn sessions_of_one_pod_leave_room_for_another() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "many").await;
    let mut sessions = Vec::new();
    for _ in 0..OF_POD {
        sessions.push(session(&pod, CARRIERS[0]).await);
    }
    let url = Url::parse(&forward_url(&pod, &[]).await.unwrap()).unwrap();
    let Err(refused) = Session::open(&url, "portforward.k8s.io").await else {
        panic!("a pod has more than {OF_POD} sessions");
    };
    let text = refused.to_string();
    assert!(text.contains("503"), "{text}");
    let other = Pod::run(&daemon, "other").await;
    let id = other.start(&shell::sh("main", "sleep 1000")).await;
    let ran = open(&other, &id, &["echo", "works"], MODERN[0], OUT).await;
    assert_eq!(ran.finish().await.unwrap().text(), "works\n");
    // Those that have ended make room.
    sessions.pop();
    let again = || async {
        let url = Url::parse(&forward_url(&pod, &[]).await.unwrap()).unwrap();
        Session::open(&url, "portforward.k8s.io").await.is_ok()
    };
    let end = Instant::now() + TIMEOUT;
    while !again().await {
        assert!(Instant::now() < end, "no room is made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.finish().await.unwrap();
}
