//! Port-forward: pairs of streams, each pair one connection to a port.
//!
//! ```text
//! spdy: data + error stream with the same requestID --+
//! websocket: channels 2i and 2i+1 -------------------+--> carry --connect--> port
//! ```
//! Invariants: a pair that breaks leaves the others alone; what either side sent before it ended arrives; a stream whose
//! partner does not come within [`PAIRING`] is given up; when the client goes, all connections go.
//! Not here: frames, and where the ports are.

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
use super::inbox::Intake;
use super::link::Connection;
use super::outbox::{FRAME, Outflow, Sender};
use super::session::Forward;
use super::spdy::{self, Headers, Incoming};

/// How long a stream waits for the other one of its pair.
const PAIRING: Duration = Duration::from_secs(30);
/// How long a client may stay silent once the pod has said all. Old clients never end their side, and an open socket keeps
/// the namespace of a pod that is gone.
const QUIET: Duration = Duration::from_secs(1);

/// One connection to be made.
pub struct Pair {
    /// The pod's port.
    pub port: u16,
    /// What the client sends.
    pub intake: Intake,
    /// What it is sent.
    pub data: Arc<Outflow>,
    /// Where it reads why there is none.
    pub error: Arc<Outflow>,
}

/// Half of a pair.
struct Waiting {
    stream: Incoming,
    until: Instant,
}

/// Serves a SPDY client to its end.
pub async fn serve_spdy(connection: Connection, ports: Forward) {
    let (link, accepted) = spdy::start(connection, is_known);
    tokio::select! {
        () = pair_up(accepted, &ports) => {}
        why = link.gone() => tracing::debug!(why, "a port-forward session ended"),
    }
}

fn is_known(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(headers.get("streamtype"), Some("data" | "error"))
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

fn is_data(stream: &Incoming) -> bool {
    stream.headers.get("streamtype") == Some("data")
}

/// What the two streams of a pair have in common. Clients older than request ids open the error stream first and the
/// data stream right after it.
fn request(stream: &Incoming) -> String {
    match stream.headers.get("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ if is_data(stream) => stream.id.saturating_sub(2).to_string(),
        _ => stream.id.to_string(),
    }
}

async fn pair_up(mut accepted: mpsc::Receiver<Incoming>, ports: &Forward) {
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
                give_up(&mut waiting);
                continue;
            }
            Some(_) = pairs.join_next() => continue,
        };
        if let Some(pair) = matched(&mut waiting, stream) {
            pairs.spawn(carry(pair, ports.clone()));
        }
    }
    // The client opens no more; what runs goes on until its connection ends.
    while pairs.join_next().await.is_some() {}
}

/// The pair that `stream` completes; else it waits for its partner.
fn matched(waiting: &mut HashMap<String, Waiting>, stream: Incoming) -> Option<Pair> {
    let request = request(&stream);
    let Some(half) = waiting.remove(&request) else {
        let until = Instant::now() + PAIRING;
        waiting.insert(request, Waiting { stream, until });
        return None;
    };
    if is_data(&half.stream) == is_data(&stream) {
        stream.outflow.reset();
        waiting.insert(request, half);
        return None;
    }
    let (data, error) = if is_data(&stream) {
        (stream, half.stream)
    } else {
        (half.stream, stream)
    };
    let port = port(&data.headers)?;
    Some(Pair {
        port,
        intake: data.intake,
        data: data.outflow,
        error: error.outflow,
    })
}

fn give_up(waiting: &mut HashMap<String, Waiting>) {
    let now = Instant::now();
    let mut late: Vec<String> = Vec::new();
    late.extend(
        waiting
            .iter()
            .filter(|(_, half)| half.until <= now)
            .map(|(request, _)| request.clone()),
    );
    for request in late {
        if let Some(Waiting { stream, .. }) = waiting.remove(&request) {
            if !is_data(&stream) {
                stream.outflow.say(
                    format!("request {request}: timed out waiting for its data stream").as_bytes(),
                );
            }
            stream.outflow.reset();
        }
    }
}

/// Connects a pair to its port and carries bytes both ways until both sides have said all.
pub async fn carry(pair: Pair, ports: Forward) {
    let Pair {
        port,
        intake,
        data,
        error,
    } = pair;
    let mut error = Sender(error);
    let target = ports.target();
    match ports.connect(port).await {
        Err(refusal) => {
            let why = chain(&*refusal);
            tracing::debug!(target, port, error = why, "a port was not forwarded");
            let text = format!("error forwarding port {port} to {target}: {why}");
            let _ = error.write_all(text.as_bytes()).await;
            drop(error);
            data.reset();
        }
        Ok(socket) => {
            if let Err(broken) = both_ways(socket, intake, &data).await {
                tracing::debug!(target, port, error = %broken, "a forwarded connection broke");
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

/// Errors: the pod's connection was reset, or the client gave the stream up.
async fn both_ways(mut socket: TcpStream, intake: Intake, data: &Arc<Outflow>) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = socket.split();
    let mut to_client = Sender(Arc::clone(data));
    let (told, said_all) = watch::channel(false);
    let outward = async {
        let outcome = copy(&mut from_pod, &mut to_client, None).await;
        data.end();
        told.send_replace(true);
        outcome.map_err(|(Failed::Read(error) | Failed::Write(error))| error)
    };
    let inward = async {
        match copy(intake, &mut to_pod, Some(said_all)).await {
            Ok(()) => to_pod.shutdown().await.or(Ok(())),
            Err(Failed::Read(error)) => Err(error),
            // The pod takes no more; what it has said already still arrives.
            Err(Failed::Write(_)) => Ok(()),
        }
    };
    tokio::try_join!(outward, inward).map(drop)
}

/// Copies until the end of `from`; once `hurry` says so, until it is silent for [`QUIET`].
async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    mut hurry: Option<watch::Receiver<bool>>,
) -> Result<(), Failed> {
    let mut buffer = vec![0; FRAME];
    loop {
        let quiet = async {
            match &mut hurry {
                // An error means that the other direction is over, too.
                Some(hurry) => drop(hurry.wait_for(|on| *on).await),
                None => std::future::pending().await,
            }
            tokio::time::sleep(QUIET).await;
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
