//! Exec and attach: the client's streams, once all are there, joined to a program until it ends.
//!
//! ```text
//! spdy (one stream each) | websocket (one channel each) --> Opened --> run --Streams--> Program
//! ```
//! Invariants: which streams there are was fixed when CRI was asked; a client that goes, or stays silent for too long,
//! gives the program up at once; the verdict leaves after all output, and the connection closes after the verdict was
//! read.
//! Not here: frames, and what runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};

use super::inbox::Intake;
use super::link::{Connection, FINISH, Link};
use super::outbox::{Outflow, Sender};
use super::spdy::{self, Headers, Incoming};
use super::status::{Form, Verdict};
use super::{Ends, Program, Streams, chain, resize};

/// How long a client may take to open its streams.
pub const OPENING: Duration = Duration::from_secs(30);

/// A client whose streams are all there.
pub struct Opened {
    /// Its connection.
    pub link: Link,
    /// What it sends, if it was asked to.
    pub stdin: Option<Intake>,
    /// The sizes that it sends.
    pub sizes: Option<Intake>,
    /// Where it takes output.
    pub stdout: Option<Arc<Outflow>>,
    /// Where it takes errors.
    pub stderr: Option<Arc<Outflow>>,
    /// Where it reads how it ended.
    pub error: Arc<Outflow>,
    /// How it wants that said.
    pub form: Form,
    /// The streams on which only it sends, to be told when nobody listens any more.
    pub inputs: Vec<Arc<Outflow>>,
}

/// Serves a SPDY client to its end. `version` is the protocol's, 1 to 4.
pub async fn serve_spdy(connection: Connection, version: u8, program: Program) {
    let (link, accepted) = spdy::start(connection, is_known);
    let ends = program.ends();
    let names = names(ends, version);
    let opened = tokio::select! {
        streams = collect(accepted, &names) => streams,
        _ = link.gone() => None,
        () = tokio::time::sleep(OPENING) => None,
    };
    let Some(mut streams) = opened else {
        tracing::debug!("a streaming client did not open its streams");
        return;
    };
    let inputs = ["stdin", "resize"]
        .into_iter()
        .filter_map(|name| streams.get(name));
    let inputs = inputs.map(|stream| Arc::clone(&stream.outflow)).collect();
    let mut take = |name: &str| streams.remove(name);
    let Some(error) = take("error") else {
        return;
    };
    let opened = Opened {
        link,
        stdin: take("stdin").map(|stream| stream.intake),
        sizes: take("resize").map(|stream| stream.intake),
        stdout: take("stdout").map(|stream| stream.outflow),
        stderr: take("stderr").map(|stream| stream.outflow),
        error: error.outflow,
        form: if version >= 4 { Form::Json } else { Form::Text },
        inputs,
    };
    run(opened, program).await;
}

fn is_known(headers: &Headers) -> bool {
    let name = headers.get("streamtype").unwrap_or_default();
    matches!(name, "error" | "stdin" | "stdout" | "stderr" | "resize")
}

/// The streams that a client of this protocol version opens.
fn names(ends: Ends, version: u8) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", ends.stdin),
        ("stdout", ends.stdout),
        ("stderr", ends.stderr),
        ("resize", ends.tty && version >= 3),
    ];
    all.into_iter()
        .filter_map(|(name, wanted)| wanted.then_some(name))
        .collect()
}

/// Waits for a stream of each name; those that were not asked for, and second ones, end at once.
async fn collect(
    mut accepted: mpsc::Receiver<Incoming>,
    names: &[&str],
) -> Option<HashMap<String, Incoming>> {
    let mut streams: HashMap<String, Incoming> = HashMap::new();
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
            stream.outflow.reset();
        }
    }
    Some(streams)
}

/// Joins the client to its program until one of them ends.
pub async fn run(opened: Opened, program: Program) {
    let Opened {
        link,
        stdin,
        sizes,
        stdout,
        stderr,
        error,
        form,
        inputs,
    } = opened;
    let (newest, size) = watch::channel(None);
    let writer = |flow: &Option<Arc<Outflow>>| {
        let flow = flow.clone()?;
        Some(Box::new(Sender(flow)) as Box<dyn tokio::io::AsyncWrite + Send + Unpin>)
    };
    let streams = Streams {
        stdin: stdin.map(|intake| Box::new(intake) as Box<dyn tokio::io::AsyncRead + Send + Unpin>),
        stdout: writer(&stdout),
        stderr: writer(&stderr),
        size,
    };
    let resizing = async {
        if let Some(sizes) = sizes {
            resize::follow(sizes, newest).await;
        }
        std::future::pending::<()>().await;
    };
    let verdict = tokio::select! {
        verdict = verdict(program, streams) => verdict,
        why = link.gone() => {
            tracing::debug!(why, "a streaming session was given up");
            return;
        }
        () = resizing => return,
    };
    tracing::debug!(?verdict, "a streaming session ended");
    inputs.iter().for_each(|flow| flow.reset());
    let text = form.render(&verdict);
    let mut error = Sender(error);
    // Fails only if the client is gone, which `finish` finds out; one that takes nothing is not waited for longer.
    let told = tokio::time::timeout(FINISH, error.write_all(text.as_bytes()));
    if told.await.is_err() {
        return;
    }
    drop(error);
    [stdout, stderr]
        .into_iter()
        .flatten()
        .for_each(|flow| flow.end());
    link.finish().await;
}

async fn verdict(program: Program, streams: Streams) -> Verdict {
    let action = program.action();
    match program.run(streams).await {
        Ok(code) => Verdict::Exited(code),
        Err(error) => Verdict::Failed(format!("error {action}: {}", chain(&*error))),
    }
}
