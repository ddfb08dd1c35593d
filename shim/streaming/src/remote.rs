//! Exec and attach: connects the client's streams, once all are open, to a program until it ends.
//!
//! ```text
//! spdy (one stream each) | websocket (one channel each) --> ClientStreams --> run --Streams--> Program
//! ```
//! Invariants: the CRI request fixes the streams of a session; when the client closes the connection or is idle for too
//! long, the program's future is dropped at once; the status is sent after all output, and the connection is closed
//! after the client has read the status.
//! Must not know: frames, the program.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use super::connection::{CLOSE_TIMEOUT, Connection, Upgraded};
use super::receive::RecvStream;
use super::send::{SendStream, SendStreamWriter};
use super::spdy::{self, Headers, NewStream};
use super::status::{ExitStatus, StatusFormat};
use super::{Program, Size, StreamOptions, Streams, chain, resize};

/// How long a client may take to open its streams.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that has opened all its streams.
pub struct ClientStreams {
    /// Its connection.
    pub connection: Connection,
    /// Its input, if there is any.
    pub stdin: Option<RecvStream>,
    /// The terminal sizes that it sends.
    pub sizes: Option<RecvStream>,
    /// Output to it.
    pub stdout: Option<Arc<SendStream>>,
    /// Standard error to it.
    pub stderr: Option<Arc<SendStream>>,
    /// The error stream, which carries the exit status.
    pub error: Arc<SendStream>,
    /// The format of the exit status.
    pub format: StatusFormat,
    /// The streams on which only the client sends, reset once the program has ended.
    pub inputs: Vec<Arc<SendStream>>,
}

/// Serves a SPDY client to its end. `version` is the protocol's, 1 to 4.
pub async fn serve_spdy(upgraded: Upgraded, version: u8, program: Program) {
    let (connection, accepted) = spdy::start(upgraded, is_known);
    let options = program.options();
    let names = names(options, version);
    let opened = tokio::select! {
        streams = collect(accepted, &names) => streams,
        _ = connection.closed() => None,
        () = tokio::time::sleep(OPEN_TIMEOUT) => None,
    };
    let Some(mut streams) = opened else {
        tracing::debug!("a streaming client did not open its streams");
        return;
    };
    let inputs = ["stdin", "resize"]
        .into_iter()
        .filter_map(|name| streams.get(name));
    let inputs = inputs
        .map(|stream| Arc::clone(&stream.send_stream))
        .collect();
    let mut take = |name: &str| streams.remove(name);
    let Some(error) = take("error") else {
        return;
    };
    let client = ClientStreams {
        connection,
        stdin: take("stdin").map(|stream| stream.recv_stream),
        sizes: take("resize").map(|stream| stream.recv_stream),
        stdout: take("stdout").map(|stream| stream.send_stream),
        stderr: take("stderr").map(|stream| stream.send_stream),
        error: error.send_stream,
        format: if version >= 4 {
            StatusFormat::Json
        } else {
            StatusFormat::Text
        },
        inputs,
    };
    run(client, program).await;
}

fn is_known(headers: &Headers) -> bool {
    let name = headers.get("streamtype").unwrap_or_default();
    matches!(name, "error" | "stdin" | "stdout" | "stderr" | "resize")
}

/// The streams that a client of this protocol version opens.
fn names(options: StreamOptions, version: u8) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", options.tty && version >= 3),
    ];
    all.into_iter()
        .filter_map(|(name, wanted)| wanted.then_some(name))
        .collect()
}

/// Waits for a stream of each name; resets streams of other names and duplicates.
async fn collect(
    mut accepted: mpsc::Receiver<NewStream>,
    names: &[&str],
) -> Option<HashMap<String, NewStream>> {
    let mut streams: HashMap<String, NewStream> = HashMap::new();
    while streams.len() < names.len() {
        let stream = accepted.recv().await?;
        let name = stream
            .headers
            .get("streamtype")
            .unwrap_or_default()
            .to_owned();
        if names.contains(&name.as_str()) && !streams.contains_key(&name) {
            streams.insert(name, stream);
        } else {
            stream.send_stream.reset();
        }
    }
    Some(streams)
}

/// Connects the client to its program until one of them ends.
pub async fn run(client: ClientStreams, program: Program) {
    let ClientStreams {
        connection,
        stdin,
        sizes,
        stdout,
        stderr,
        error,
        format,
        inputs,
    } = client;
    let (newest, size) = watch::channel(None);
    let streams = Streams {
        stdin: stdin.map(|stream| Box::new(stream) as Box<dyn AsyncRead + Send + Unpin>),
        stdout: writer(&stdout),
        stderr: writer(&stderr),
        size,
    };
    let status = tokio::select! {
        status = status(program, streams) => status,
        reason = connection.closed() => {
            tracing::debug!(reason, "a streaming session was aborted");
            return;
        }
        () = follow_sizes(sizes, newest) => return,
    };
    tracing::debug!(?status, "a streaming session ended");
    inputs.iter().for_each(|stream| stream.reset());
    if !send_status(error, &format.render(&status)).await {
        return;
    }
    [stdout, stderr]
        .into_iter()
        .flatten()
        .for_each(|stream| stream.end());
    connection.finish().await;
}

/// Follows the terminal sizes of a client; never returns.
async fn follow_sizes(sizes: Option<RecvStream>, newest: watch::Sender<Option<Size>>) {
    if let Some(sizes) = sizes {
        resize::follow(sizes, newest).await;
    }
    std::future::pending::<()>().await;
}

fn writer(stream: &Option<Arc<SendStream>>) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
    let stream = stream.clone()?;
    Some(Box::new(SendStreamWriter(stream)))
}

/// Sends the status and ends the error stream. False when the client does not read it within [`CLOSE_TIMEOUT`].
async fn send_status(error: Arc<SendStream>, text: &str) -> bool {
    let mut error = SendStreamWriter(error);
    // It fails only if the client closed the connection, which `finish` notices.
    let sent = tokio::time::timeout(CLOSE_TIMEOUT, error.write_all(text.as_bytes()));
    sent.await.is_ok()
}

async fn status(program: Program, streams: Streams) -> ExitStatus {
    let action = program.action();
    match program.run(streams).await {
        Ok(code) => ExitStatus::Exited(code),
        Err(error) => ExitStatus::Failed(format!("error {action}: {}", chain(&*error))),
    }
}
