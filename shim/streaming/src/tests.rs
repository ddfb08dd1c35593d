//! Sessions over pipes in memory, with programs that only copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::connection::{Peer, Upgraded};
use super::remote;
use super::spdy::Headers;
use super::spdy::frame::{self, HEAD, Head, Kind};
use super::spdy::headers::Deflater;
use super::{Program, SessionFuture, StreamOptions, Streams};

/// Exec copies input to output and ends with 5; with `flood` it writes for ever. Counts the bytes that were read, and
/// the futures that exist.
#[derive(Default)]
struct Pipes {
    flood: bool,
    taken: AtomicUsize,
    alive: Arc<()>,
}

impl Pipes {
    fn run(self: Arc<Self>, streams: Streams) -> SessionFuture<i32> {
        let alive = Arc::clone(&self.alive);
        Box::pin(async move {
            let _alive = alive;
            let (Some(mut stdin), Some(mut stdout)) = (streams.stdin, streams.stdout) else {
                return Err("streams are missing".into());
            };
            if self.flood {
                loop {
                    let written = stdout.write(&[0; 4096]).await?;
                    self.taken.fetch_add(written, Ordering::AcqRel);
                }
            }
            tokio::io::copy(&mut stdin, &mut stdout).await?;
            Ok(5)
        })
    }
}

/// A client's end, and the session's task.
fn exec(pipes: &Arc<Pipes>) -> (DuplexStream, JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(4096);
    let upgraded = Upgraded {
        io: Box::new(theirs),
        peer: Peer::default(),
        idle: Duration::from_secs(60),
        budget: Arc::default(),
    };
    let options = StreamOptions {
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let pipes = Arc::clone(pipes);
    let program = Program::new("running pipes", options, move |streams| pipes.run(streams));
    let session = remote::serve_spdy(upgraded, 4, program);
    (ours, tokio::spawn(session))
}

/// Opens streams 1, 3, 5: error, stdin, stdout.
async fn open(client: &mut DuplexStream) {
    let mut deflater = Deflater::new();
    for (id, name) in [(1_u32, "error"), (3, "stdin"), (5, "stdout")] {
        let block = deflater.write(&Headers::from([("streamType", name)]));
        let mut syn = vec![0x80, 3, 0, 1];
        syn.extend((block.len() as u32 + 10).to_be_bytes());
        syn.extend(id.to_be_bytes());
        syn.extend([0; 6]);
        syn.extend(block);
        client.write_all(&syn).await.unwrap();
        let (head, payload) = next(client).await;
        assert!(
            matches!(
                head,
                Head::Control {
                    kind: Kind::Other,
                    ..
                }
            ),
            "{head:?}"
        );
        assert_eq!(frame::stream_id(&payload), id);
    }
}

async fn next(client: &mut DuplexStream) -> (Head, Vec<u8>) {
    let mut head = [0; HEAD];
    client.read_exact(&mut head).await.unwrap();
    let head = Head::parse(head);
    let (Head::Data { length, .. } | Head::Control { length, .. }) = head else {
        panic!("{head:?}");
    };
    let mut payload = vec![0; length];
    client.read_exact(&mut payload).await.unwrap();
    (head, payload)
}

#[tokio::test]
async fn output_is_followed_by_the_status_and_the_ends_of_the_streams() {
    let pipes = Arc::default();
    let (mut client, session) = exec(&pipes);
    open(&mut client).await;
    client
        .write_all(&frame::data(3, b"echo", true))
        .await
        .unwrap();
    // Data after the end is dropped.
    client
        .write_all(&frame::data(3, b"late", true))
        .await
        .unwrap();
    let (head, payload) = next(&mut client).await;
    assert_eq!(
        (head, payload.as_slice()),
        (
            Head::Data {
                stream: 5,
                fin: false,
                length: 4
            },
            &b"echo"[..]
        )
    );
    let (mut status, mut ended, mut reset) = (Vec::new(), Vec::new(), Vec::new());
    while ended.len() + reset.len() < 3 {
        let (head, payload) = next(&mut client).await;
        match head {
            Head::Data { stream, fin, .. } => {
                assert!(
                    stream == 1 || payload.is_empty(),
                    "more than was sent came back"
                );
                status.extend(payload);
                ended.extend(fin.then_some(stream));
            }
            _ => reset.push(frame::stream_id(&payload)),
        }
    }
    assert_eq!(reset, [3], "nobody listens to input any more");
    ended.sort_unstable();
    assert_eq!(ended, [1, 5]);
    assert!(
        String::from_utf8(status)
            .unwrap()
            .contains("\"message\":\"5\"")
    );
    // The connection stays until the client closes it.
    assert!(!session.is_finished());
    drop(client);
    session.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_bounded_memory_and_its_end_ends_the_program() {
    let pipes = Arc::new(Pipes {
        flood: true,
        ..Pipes::default()
    });
    let (mut client, session) = exec(&pipes);
    open(&mut client).await;
    let mut before = usize::MAX;
    while pipes.taken.load(Ordering::Acquire) != before {
        before = pipes.taken.load(Ordering::Acquire);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((100_000..600_000).contains(&before), "{before}");
    assert_eq!(Arc::strong_count(&pipes.alive), 2);
    drop(client);
    tokio::time::timeout(Duration::from_secs(60), session)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(Arc::strong_count(&pipes.alive), 1, "the future lives on");
}
