//! The targets that read what streaming clients send: header blocks, and whole sessions over pipes in memory.
//!
//! A session ends once its client has gone, whatever the client said before; nothing of it lives on.

use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::id::{ContainerId, PodId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::link::{Connection, Peer};
use super::remote::{self, Program};
use super::spdy::headers::{Deflater, Inflater};
use super::websocket::{self, Dialect};
use super::{AttachWish, Backend, ExecWish, ForwardWish, Job, Streams};
use crate::lifecycle::{Error, Kind};

/// How long a session may live without its client.
const END: Duration = Duration::from_secs(5);
/// Longest block that is inflated, and more than its bytes have to be.
const MAX_BLOCK: usize = 16 << 10;

/// Exec copies input to output and ends; there is nothing to attach or connect to.
struct Echo;

impl Backend for Echo {
    fn exec(&self, _: ExecWish, streams: Streams) -> Job<i32> {
        Box::pin(async move {
            if let (Some(mut stdin), Some(mut stdout)) = (streams.stdin, streams.stdout) {
                let copied = tokio::io::copy(&mut stdin, &mut stdout).await;
                copied.map_err(|e| Error::because(Kind::Io, "copy", e))?;
            }
            Ok(0)
        })
    }

    fn attach(&self, _: AttachWish, _: Streams) -> Job<()> {
        Box::pin(async { Err(Error::new(Kind::WrongPhase, "nothing runs")) })
    }

    fn connect(&self, _: PodId, _: u16) -> Job<TcpStream> {
        Box::pin(async { Err(Error::new(Kind::Missing, "nobody listens")) })
    }
}

/// Blocks of one direction, each with its length in two bytes before it: what is read is bounded, and is written as
/// what is read the same.
pub(crate) fn headers(input: &[u8]) {
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
        // What is no UTF-8 grows when it is made so.
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

/// SPDY as exec speaks it; the first byte chooses the version of the protocol and the streams.
pub(crate) fn spdy(input: &[u8]) {
    session(input, |choice, connection, backend| async move {
        remote::serve_spdy(connection, choice % 5, exec(choice), backend).await;
    });
}

/// WebSocket messages of exec; the first byte chooses dialect and streams.
pub(crate) fn websocket(input: &[u8]) {
    session(input, |choice, connection, backend| async move {
        let names = websocket::REMOTE;
        let dialect = Dialect::named(names[usize::from(choice) % names.len()]);
        websocket::serve_remote(connection, dialect, exec(choice), backend).await;
    });
}

/// WebSocket messages of port-forward, by channels or as a tunnel of SPDY.
pub(crate) fn tunnel(input: &[u8]) {
    session(input, |choice, connection, backend| async move {
        let wish = ForwardWish {
            pod: PodId::random().expect("the kernel has random bytes"),
            ports: vec![80, 443],
        };
        if choice.is_multiple_of(2) {
            websocket::serve_tunnel(connection, wish, backend).await;
        } else {
            let names = websocket::FORWARD;
            let dialect = Dialect::named(names[usize::from(choice / 2) % names.len()]);
            websocket::serve_forward(connection, dialect, wish, backend).await;
        }
    });
}

fn exec(choice: u8) -> Program {
    let tty = choice & 0x80 != 0;
    Program::Exec(ExecWish {
        container: ContainerId::random().expect("the kernel has random bytes"),
        argv: vec!["cat".into()],
        tty,
        stdin: choice & 0x40 == 0,
        stdout: true,
        stderr: choice & 0x20 != 0 && !tty,
    })
}

/// Serves a client that sends the input but for its first byte, reads a while, and goes.
fn session<F: Future<Output = ()> + Send + 'static>(
    input: &[u8],
    serve: impl FnOnce(u8, Connection, Arc<dyn Backend>) -> F,
) {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let (client, server) = tokio::io::duplex(64 << 10);
    let connection = Connection {
        wire: Box::new(server),
        peer: Peer::default(),
        idle: Duration::from_secs(60),
    };
    let backend: Arc<dyn Backend> = Arc::new(Echo);
    let alive = Arc::downgrade(&backend);
    let served = serve(*choice, connection, backend);
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
        // Jobs are given up a moment after.
        let end = tokio::time::Instant::now() + END;
        while alive.strong_count() > 0 {
            let now = tokio::time::Instant::now();
            assert!(now < end, "a job outlives its session");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// One for all inputs: what a session leaves running shows in the next ones' time.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        built.expect("a runtime can be built")
    })
}
