//! A caller that sends too much, or connects without end: T37.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coracle_tests::vitals::descriptors;

use super::canary::Canary;
use super::wasm::resident;
use crate::authority::frame;
use crate::image_cli::run_with;
use crate::linux::shell::{fresh, on_peer};
use crate::site::{Pod, daemon, eventually};

/// The first bytes of an HTTP/2 client. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// T37, CVE-2023-44487: whatever the rest of the socket does, a call is answered, and the daemon stays small.
#[tokio::test]
async fn messages_that_are_huge_and_connections_without_end_are_borne() {
    if on_peer() {
        return; // Its limits are others.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let before = resident(daemon.pid());
    let connect = || UnixStream::connect(daemon.socket()).unwrap();
    // Connections that send nothing, and some that send a first frame.
    let silent: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
    let mut begun: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    for stream in &mut begun {
        stream.write_all(PREFACE).unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    }
    canary.is_untouched(&daemon).await;
    // Streams that are opened and reset at once; frames without content; a header block that never ends.
    let floods: [fn(u32) -> Vec<u8>; 3] = [
        |number| {
            let stream = number * 2 + 1;
            let open = frame(1, 4, stream, &[0x83, 0x86, 0x84]);
            [open, frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
        },
        |_| frame(0, 0, 1, &[]),
        |number| match number {
            0 => frame(1, 0, 1, &[0x83]),
            _ => frame(9, 0, 1, &[0; 1024]),
        },
    ];
    for flood in floods {
        let mut stream = connect();
        stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        stream.write_all(PREFACE).unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).unwrap();
        let end = Instant::now() + Duration::from_secs(3);
        for number in 0..200_000 {
            // The daemon may hang up, which is as good as bearing it.
            if stream.write_all(&flood(number)).is_err() || Instant::now() > end {
                break;
            }
        }
        canary.is_untouched(&daemon).await;
    }
    drop((silent, begun));
    // Labels by the hundred thousand: taken, or refused.
    for size in [1_000_u32, 100_000] {
        let mut config = daemon.pod(&fresh("labels"));
        config.labels = (0..size)
            .map(|n| (format!("label-{n}"), "x".repeat(16)))
            .collect();
        if let Ok(id) = daemon.cri().run_pod(&config).await {
            let status = daemon.cri().pod_status(&id).await.unwrap();
            assert_eq!(status.labels.len(), config.labels.len());
            daemon.cri().remove_pod(&id).await.unwrap();
        }
        canary.is_untouched(&daemon).await;
    }
    Pod::run(&daemon, "after").await;
    let grown = resident(daemon.pid()).saturating_sub(before);
    assert!(grown < 128 << 20, "the daemon grew by {} MiB", grown >> 20);
    daemon.finish().await.unwrap();
}

/// A client that runs away has a bounded part of the daemon's descriptors, and keeps nobody else out.
#[tokio::test]
async fn one_process_does_not_take_all_connections() {
    let daemon = daemon().await;
    let before = descriptors(daemon.pid()).len();
    let mut held: Vec<UnixStream> = (0..900)
        .map(|_| UnixStream::connect(daemon.socket()).unwrap())
        .collect();
    // Another process is served, and as the daemon accepts in turn, all of these were accepted before.
    let listed = run_with(&daemon, &["ls"], b"");
    assert!(listed.status.success(), "{listed:?}");
    let taken = descriptors(daemon.pid()).len().saturating_sub(before);
    assert!(
        (256..=640).contains(&taken),
        "{taken} descriptors were taken"
    );
    // Whoever is one too many is told at once.
    let mut last = held.pop().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(last.read(&mut [0; 1]).unwrap(), 0);
    drop(held);
    eventually("there is room again", || {
        descriptors(daemon.pid()).len() < before + 64
    })
    .await;
    Pod::run(&daemon, "after").await;
    daemon.finish().await.unwrap();
}
