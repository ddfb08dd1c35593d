//! Fuzz targets of this crate: header blocks, and whole sessions over pipes in memory. Each reads one input, and panics
//! when a guarantee is broken.
//!
//! Called by: the `fuzz` binary of the shim, and the test below, which replays the corpora of `shim/streaming/fuzz` in
//! every `make test`. No release contains this module. docs/security/fuzzing.md lists what each target checks.
//! Invariants: a target touches nothing outside this process; a session ends once its client has gone, whatever the
//! client sent, and leaves nothing running.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connection::{Peer, Upgraded};
use super::remote;
use super::spdy::headers::{Deflater, Inflater};
use super::websocket::{self, Subprotocol};
use super::{Forward, Program, StreamOptions};

/// A target: its name, and the function that takes one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[
    ("spdy-headers", headers),
    ("spdy-session", spdy),
    ("websocket-session", websocket),
    ("websocket-tunnel", tunnel),
];

/// How long a session may live without its client.
const END: Duration = Duration::from_secs(5);
/// Longest block that is inflated, more than its bytes need.
const MAX_BLOCK: usize = 16 << 10;

/// Decodes blocks of one direction, each after its length in two bytes. A block that decodes must be bounded, and be
/// encoded and decoded again without a difference.
fn headers(input: &[u8]) {
    let (mut inflater, mut deflater, mut again) =
        (Inflater::new(), Deflater::new(), Inflater::new());
    let mut rest = input;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (block, tail) = tail.split_at(length);
        rest = tail;
        let Ok(headers) = inflater.read(block) else {
            return;
        };
        let _ = headers.get("streamtype").map(str::len);
        // Text that is not UTF-8 grows when it is converted.
        if let Ok(read) = again.read(&deflater.write(&headers)) {
            assert_eq!(read, headers);
        } else {
            assert!(
                input.len() > MAX_BLOCK / 1040,
                "a short block is read and cannot be written"
            );
            return;
        }
    }
}

/// SPDY for exec; the first byte chooses the version of the protocol and the streams.
fn spdy(input: &[u8]) {
    session(input, |choice, upgraded, alive| async move {
        remote::serve_spdy(upgraded, choice % 5, echo(choice, alive)).await;
    });
}

/// WebSocket messages of exec; the first byte chooses subprotocol and streams.
fn websocket(input: &[u8]) {
    session(input, |choice, upgraded, alive| async move {
        let names = websocket::REMOTE;
        let subprotocol = Subprotocol::named(names[usize::from(choice) % names.len()]);
        websocket::serve_remote(upgraded, subprotocol, echo(choice, alive)).await;
    });
}

/// WebSocket messages of port-forward, by channels or as a tunnel of SPDY.
fn tunnel(input: &[u8]) {
    session(input, |choice, upgraded, alive| async move {
        let ports = Forward::new("nobody", vec![80, 443], move |_| {
            let alive = Arc::clone(&alive);
            Box::pin(async move {
                let _alive = alive;
                Err("nobody listens".into())
            })
        });
        if choice.is_multiple_of(2) {
            websocket::serve_tunnel(upgraded, ports).await;
        } else {
            let names = websocket::FORWARD;
            let subprotocol = Subprotocol::named(names[usize::from(choice / 2) % names.len()]);
            websocket::serve_forward(upgraded, subprotocol, ports).await;
        }
    });
}

/// Copies input to output and ends. Holds `alive` while it runs.
fn echo(choice: u8, alive: Arc<()>) -> Program {
    let tty = choice & 0x80 != 0;
    let options = StreamOptions {
        tty,
        stdin: choice & 0x40 == 0,
        stdout: true,
        stderr: choice & 0x20 != 0 && !tty,
    };
    Program::new("copying", options, move |streams| {
        Box::pin(async move {
            let _alive = alive;
            if let (Some(mut stdin), Some(mut stdout)) = (streams.stdin, streams.stdout) {
                tokio::io::copy(&mut stdin, &mut stdout).await?;
            }
            Ok(0)
        })
    })
}

/// Serves a client that sends the input except its first byte, reads for a while, and closes.
fn session<F: Future<Output = ()> + Send + 'static>(
    input: &[u8],
    serve: impl FnOnce(u8, Upgraded, Arc<()>) -> F,
) {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let (client, server) = tokio::io::duplex(64 << 10);
    let upgraded = Upgraded {
        io: Box::new(server),
        peer: Peer::default(),
        idle: Duration::from_secs(60),
        budget: Arc::default(),
    };
    let alive = Arc::new(());
    let futures = Arc::downgrade(&alive);
    let served = serve(*choice, upgraded, alive);
    let bytes = bytes.to_vec();
    runtime().block_on(async move {
        let served = tokio::spawn(served);
        let (mut from, mut to) = tokio::io::split(client);
        let talk = async move {
            let _ = to.write_all(&bytes).await;
            let _ = to.shutdown().await;
        };
        let listen = async move {
            let mut buffer = [0; 4096];
            while let Ok(1..) = from.read(&mut buffer).await {}
        };
        tokio::join!(talk, listen);
        let ended = tokio::time::timeout(END, served).await;
        ended
            .expect("the session outlives its client")
            .expect("the session panicked");
        all_dropped(&futures).await;
    });
}

/// Waits until all futures of a session are dropped, which happens a moment after its end.
async fn all_dropped(futures: &std::sync::Weak<()>) {
    let end = tokio::time::Instant::now() + END;
    while futures.strong_count() > 0 {
        let now = tokio::time::Instant::now();
        assert!(now < end, "a future outlives its session");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One runtime for all inputs: whatever a session leaves running slows the next ones down.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        built.expect("a runtime can be built")
    })
}

#[cfg(test)]
#[path = "../../../runtime/fuzz/replay.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod replay;
