//! A GiB through every kind of session, each way: it arrives as it was, and the daemon stays small.

use coracle_tests::streaming::{MODERN, Part};
use sha2::{Digest as _, Sha256};

use super::forward::{CARRIERS, pair, servers, session};
use super::{BOTH, OUT, memory_kib, open};
use crate::linux::shell;
use crate::site::Pod;

const GIB: usize = 1 << 30;
/// What the daemon may grow by, KiB: a GiB through it leaves its buffers and no more.
const GROWTH: u64 = 16 * 1024;

/// A GiB that is not the same everywhere, in pieces.
fn pieces() -> impl Iterator<Item = Vec<u8>> {
    (0..GIB / (64 << 10)).map(|number| {
        let mut state = number as u32 | 1;
        let mut piece = Vec::with_capacity(64 << 10);
        while piece.len() < 64 << 10 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            piece.extend(state.to_le_bytes());
        }
        piece
    })
}

fn sum() -> String {
    let mut sum = Sha256::new();
    pieces().for_each(|piece| sum.update(piece));
    hex(&sum.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How much the daemon's memory peaked above what it was.
fn peak(pid: i32, before: u64) -> u64 {
    memory_kib(pid, "VmHWM:").saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gib_goes_through_exec_both_ways() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-gib").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    open(&pod, &id, &["true"], MODERN[0], OUT)
        .await
        .finish()
        .await
        .unwrap();
    let before = memory_kib(daemon.pid(), "VmHWM:");
    let want = sum();
    for wire in MODERN {
        // In, and back out again.
        let mut remote = open(&pod, &id, &["cat"], *wire, BOTH).await;
        let stdin = remote.stdin.take().unwrap();
        let sending = tokio::spawn(async move {
            for piece in pieces() {
                stdin.send(&piece).await.unwrap();
            }
            stdin.end().await.unwrap();
        });
        let (mut received, mut status) = (Sha256::new(), String::new());
        while let Some(part) = remote.next().await {
            match part {
                Part::Out(bytes) => received.update(bytes),
                Part::Err(bytes) | Part::Status(bytes) => {
                    status.push_str(&String::from_utf8(bytes).unwrap())
                }
            }
        }
        sending.await.unwrap();
        assert_eq!(hex(&received.finalize()), want, "{wire:?}");
        assert!(status.contains("Success"), "{wire:?}: {status}");
        let grown = peak(daemon.pid(), before);
        assert!(grown < GROWTH, "{wire:?}: the daemon grew by {grown} KiB");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gib_goes_through_port_forward_both_ways() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    drop(session(&pod, CARRIERS[0]).await);
    let before = memory_kib(daemon.pid(), "VmHWM:");
    let want = sum();
    for carrier in CARRIERS {
        let session = session(&pod, carrier).await;
        let echo = pair(&session, 7000, "0").await;
        let (outgoing, mut incoming) = (echo.outgoing, echo.incoming);
        let sending = tokio::spawn(async move {
            for piece in pieces() {
                outgoing.send(&piece).await.unwrap();
            }
            outgoing.end().await.unwrap();
        });
        let mut received = Sha256::new();
        while let Some(bytes) = incoming.next().await {
            received.update(bytes);
        }
        sending.await.unwrap();
        assert_eq!(hex(&received.finalize()), want, "{carrier:?}");
        let grown = peak(daemon.pid(), before);
        assert!(
            grown < GROWTH,
            "{carrier:?}: the daemon grew by {grown} KiB"
        );
    }
    daemon.finish().await.unwrap();
}

/// A client that reads nothing holds its program up, and takes no memory.
#[tokio::test]
async fn a_client_that_does_not_read_slows_its_program() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "unread").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    open(&pod, &id, &["true"], MODERN[0], OUT)
        .await
        .finish()
        .await
        .unwrap();
    let before = memory_kib(daemon.pid(), "VmRSS:");
    let mut idle = Vec::new();
    for number in 0..20 {
        idle.push(open(&pod, &id, &["cat", "/dev/zero"], MODERN[number % 2], OUT).await);
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let grown = memory_kib(daemon.pid(), "VmRSS:").saturating_sub(before);
    assert!(grown < 32 * 1024, "the daemon grew by {grown} KiB");
    assert_eq!(
        super::run(&pod, &id, "echo others go on", MODERN[0])
            .await
            .text(),
        "others go on\n"
    );
    daemon.finish().await.unwrap();
}
