//! Port-forward: pairs of streams, each pair one connection to a port.
//!
//! ```text
//! spdy: data + error stream with the same requestID --+
//! websocket: channels 2i and 2i+1 -------------------+--> run_pair --connect--> port
//! ```
//! Invariants: a pair that fails leaves the others alone; everything that either side sent before it ended arrives; a
//! stream whose partner is not opened within [`PAIR_TIMEOUT`] is reset; when the client closes its connection, all
//! connections to ports are closed.
//! Must not know: frames, how ports are reached.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::chain;
use super::connection::Upgraded;
use super::receive::RecvStream;
use super::send::{MAX_FRAME, SendStream, SendStreamWriter};
use super::session::Forward;
use super::spdy::{self, Headers, NewStream};

/// How long a stream waits for the other one of its pair.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest name of a pair, bytes; clients count.
const MAX_REQUEST: usize = 128;
/// How long a client may send nothing once the pod has ended its side. Old clients never end their side, and an open
/// socket keeps the namespace of a removed pod alive.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection to make.
pub struct Pair {
    /// The pod's port.
    pub port: u16,
    /// Data from the client.
    pub recv_stream: RecvStream,
    /// Data to the client.
    pub data: Arc<SendStream>,
    /// The error stream, for the reason why there is no connection.
    pub error: Arc<SendStream>,
}

/// One stream of a pair whose partner is not open yet; of its headers only what is needed.
struct Waiting {
    stream: NewStream,
    is_data: bool,
    port: u16,
    until: Instant,
}

/// Serves a SPDY client to its end.
pub async fn serve_spdy(upgraded: Upgraded, ports: Forward) {
    let (connection, accepted) = spdy::start(upgraded, is_known);
    tokio::select! {
        () = pair_up(accepted, &ports) => {}
        reason = connection.closed() => tracing::debug!(reason, "a port-forward session ended"),
    }
}

fn is_known(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(headers.get("streamtype"), Some("data" | "error"))
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

fn is_data(stream: &NewStream) -> bool {
    stream.headers.get("streamtype") == Some("data")
}

/// The key that the two streams of a pair share. Clients older than request ids open the error stream first and the
/// data stream directly after it.
fn request(stream: &NewStream) -> String {
    match stream.headers.get("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ if is_data(stream) => stream.id.saturating_sub(2).to_string(),
        _ => stream.id.to_string(),
    }
}

async fn pair_up(mut accepted: mpsc::Receiver<NewStream>, ports: &Forward) {
    let mut waiting: HashMap<String, Waiting> = HashMap::new();
    let mut pairs = JoinSet::new();
    loop {
        let next = waiting.values().map(|half| half.until).min();
        let overdue = async {
            match next {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = accepted.recv() => match stream {
                Some(stream) => stream,
                None => break,
            },
            () = overdue => {
                drop_overdue(&mut waiting);
                continue;
            }
            Some(_) = pairs.join_next() => continue,
        };
        if let Some(pair) = matched(&mut waiting, stream) {
            pairs.spawn(run_pair(pair, ports.clone()));
        }
    }
    // The client opens no more streams; open pairs continue until its connection ends.
    while pairs.join_next().await.is_some() {}
}

/// The pair that `stream` completes; otherwise it waits for its partner.
fn matched(waiting: &mut HashMap<String, Waiting>, stream: NewStream) -> Option<Pair> {
    let (request, is_data, port) = (request(&stream), is_data(&stream), port(&stream.headers)?);
    if request.len() > MAX_REQUEST {
        stream.send_stream.reset();
        return None;
    }
    let stream = NewStream {
        headers: Headers::default(),
        ..stream
    };
    let Some(half) = waiting.remove(&request) else {
        let half = Waiting {
            stream,
            is_data,
            port,
            until: Instant::now() + PAIR_TIMEOUT,
        };
        waiting.insert(request, half);
        return None;
    };
    if half.is_data == is_data {
        stream.send_stream.reset();
        waiting.insert(request, half);
        return None;
    }
    let (data, error, port) = if is_data {
        (stream, half.stream, port)
    } else {
        (half.stream, stream, half.port)
    };
    Some(Pair {
        port,
        recv_stream: data.recv_stream,
        data: data.send_stream,
        error: error.send_stream,
    })
}

fn drop_overdue(waiting: &mut HashMap<String, Waiting>) {
    let now = Instant::now();
    let mut late: Vec<String> = Vec::new();
    late.extend(
        waiting
            .iter()
            .filter(|(_, half)| half.until <= now)
            .map(|(request, _)| request.clone()),
    );
    for request in late {
        if let Some(Waiting {
            stream, is_data, ..
        }) = waiting.remove(&request)
        {
            if !is_data {
                stream.send_stream.send_now(
                    format!("request {request}: timed out waiting for its data stream").as_bytes(),
                );
            }
            stream.send_stream.reset();
        }
    }
}

/// Connects a pair to its port and copies bytes both ways until both sides have ended.
pub async fn run_pair(pair: Pair, ports: Forward) {
    let Pair {
        port,
        recv_stream,
        data,
        error,
    } = pair;
    let mut error = SendStreamWriter(error);
    let target = ports.target();
    let connected = match ports.share() {
        Ok(share) => ports.connect(port).await.map(|socket| (socket, share)),
        Err(refused) => Err(refused.into()),
    };
    match connected {
        Err(failure) => {
            let reason = chain(&*failure);
            tracing::debug!(target, port, error = reason, "a port was not forwarded");
            let text = format!("error forwarding port {port} to {target}: {reason}");
            let _ = error.write_all(text.as_bytes()).await;
            drop(error);
            data.reset();
        }
        Ok((socket, _share)) => {
            if let Err(failure) = copy_both_ways(socket, recv_stream, &data).await {
                tracing::debug!(target, port, error = %failure, "a forwarded connection broke");
                data.reset();
            }
        }
    }
}

/// Which side of a copy failed.
enum Failed {
    /// The side that is read.
    Read(io::Error),
    /// The side that is written.
    Write(io::Error),
}

/// Copies in both directions. Errors: the pod's connection was reset, or the client reset the stream.
async fn copy_both_ways(
    mut socket: TcpStream,
    recv_stream: RecvStream,
    data: &Arc<SendStream>,
) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = socket.split();
    let mut to_client = SendStreamWriter(Arc::clone(data));
    let (pod_ended, pod_has_ended) = watch::channel(false);
    let to_client_copy = async {
        let copied = copy(&mut from_pod, &mut to_client, None).await;
        data.end();
        pod_ended.send_replace(true);
        copied.map_err(|(Failed::Read(error) | Failed::Write(error))| error)
    };
    let to_pod_copy = async {
        match copy(recv_stream, &mut to_pod, Some(pod_has_ended)).await {
            Ok(()) => to_pod.shutdown().await.or(Ok(())),
            Err(Failed::Read(error)) => Err(error),
            // The pod reads no more; data that it has already sent still arrives.
            Err(Failed::Write(_)) => Ok(()),
        }
    };
    tokio::try_join!(to_client_copy, to_pod_copy).map(drop)
}

/// Copies until the end of `from`; once `other_ended` is true, also until `from` sends nothing for
/// [`HALF_CLOSE_TIMEOUT`].
async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    mut other_ended: Option<watch::Receiver<bool>>,
) -> Result<(), Failed> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let quiet = async {
            match &mut other_ended {
                // An error means that the other direction has ended, too.
                Some(other_ended) => drop(other_ended.wait_for(|on| *on).await),
                None => std::future::pending().await,
            }
            tokio::time::sleep(HALF_CLOSE_TIMEOUT).await;
        };
        let count = tokio::select! {
            count = from.read(&mut buffer) => count.map_err(Failed::Read)?,
            () = quiet => 0,
        };
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])
            .await
            .map_err(Failed::Write)?;
    }
}
