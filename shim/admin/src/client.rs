//! The commands that ask the running daemon.
//!
//! Called by: the command line of the shim. Invariants: `--json` prints the reply as it came, one object; without a daemon
//! the exit code is 2; a reader that closes the pipe is no error.
//! Must not know: how the daemon finds the answers.

use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use coracle_proto::admin::v1 as admin;
use coracle_proto::admin::v1::admin_service_client::AdminServiceClient;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::print;
use super::server::now;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The exit code without a daemon.
const NO_DAEMON: u8 = 2;
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The largest reply, bytes.
const MAX_REPLY: usize = 64 << 20;

/// Where the daemon is.
#[derive(Clone, Debug, Default, Args)]
pub struct Place {
    /// Configuration file, which names the run directory; /etc/coracle/config.toml if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the daemon's sockets, instead of the configured one
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether the node can run pods, and what it has; exit code 0 ready, 1 not ready, 2 no daemon
    Status {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// List running containers with their pods
    Ps {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Also containers that have ended and sandboxes that are not ready
        #[arg(short, long)]
        all: bool,
    },
    /// Tell the life of a pod or container: what it waits for, what happened, what failed last
    Why {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// NAMESPACE/POD, POD, or the id of a sandbox or container, or its beginning
        name: String,
    },
    /// Print what a container wrote
    Logs {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Go on with what it writes from now on
        #[arg(short, long)]
        follow: bool,
        /// NAMESPACE/POD, POD, or the id of a sandbox or container, or its beginning
        name: String,
        /// The container's name, if the pod has several
        container: Option<String>,
    },
    /// Print what happened to pods and containers
    Events {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Only the last so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        since: u64,
        /// Go on with what happens from now on
        #[arg(short, long)]
        follow: bool,
    },
}

impl Command {
    /// Where the daemon is.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Command::Status { place }
            | Command::Ps { place, .. }
            | Command::Why { place, .. }
            | Command::Logs { place, .. }
            | Command::Events { place, .. } => place,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon answers.
    #[error("no daemon answers on {}; is `coracle serve` running?", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What its connection failed with.
        source: Status,
    },
    /// The daemon refused.
    #[error("{}", .0.message())]
    Refused(Status),
    /// Reading a log or printing failed.
    #[error("{what}")]
    Io {
        /// What was done.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The request is not clear.
    #[error("{0}")]
    Unclear(String),
}

impl Error {
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs `command` with the daemon whose admin socket is `socket`; returns the exit code.
pub fn main(command: Command, socket: &Path) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(command, socket)),
        Err(source) => Err(Error::Io {
            what: "start a runtime".to_owned(),
            source,
        }),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => 0,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map_or(String::new(), |cause| format!(": {cause}"));
            let cause = if matches!(error, Error::NoDaemon { .. }) {
                ""
            } else {
                &cause
            };
            // Without standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "coracle: {error}{cause}");
            match error {
                Error::NoDaemon { .. } => NO_DAEMON,
                _ => 1,
            }
        }
    }
}

async fn run(command: Command, socket: &Path) -> Result<u8, Error> {
    let mut daemon = Daemon::new(socket);
    let json = command.place().json;
    match command {
        Command::Status { .. } => {
            let status = daemon.client.status(admin::StatusRequest {}).await;
            let status = daemon.answer(status)?;
            say(json, &status, || print::status(&status))?;
            Ok(u8::from(!status.ready))
        }
        Command::Ps { all, .. } => {
            let request = admin::ListContainersRequest { all };
            let listed = daemon.client.list_containers(request).await;
            let listed = daemon.answer(listed)?;
            let rows = || print::containers(&listed.containers, now());
            say(json, &listed, || print::table(&rows(), width()))?;
            Ok(0)
        }
        Command::Why { name, .. } => {
            let explained = daemon.explain(name).await?;
            let text = || print::explained(&explained.pods, now(), width());
            say(json, &explained, text)?;
            Ok(0)
        }
        Command::Logs {
            name,
            container,
            follow,
            ..
        } => {
            let explained = daemon.explain(name).await?;
            let log = log_of(&explained.pods, container.as_deref())?;
            copy_log(&mut daemon, log, follow).await
        }
        Command::Events { since, follow, .. } => {
            let request = admin::EventsRequest {
                since_s: since,
                follow,
            };
            events(&mut daemon, request, json).await
        }
    }
}

async fn events(
    daemon: &mut Daemon,
    request: admin::EventsRequest,
    json: bool,
) -> Result<u8, Error> {
    let stream = daemon.client.events(request).await;
    let mut stream = daemon.answer(stream)?;
    let mut is_first = true;
    while let Some(event) = stream.message().await.map_err(Error::Refused)? {
        let row = || {
            let rows = print::events(std::slice::from_ref(&event), now());
            let from = usize::from(!is_first);
            print::table(&rows[from..], None)
        };
        say(json, &event, row)?;
        is_first = false;
    }
    Ok(0)
}

/// A client of the daemon.
struct Daemon {
    socket: PathBuf,
    client: AdminServiceClient<Channel>,
}

impl Daemon {
    /// Connects at the first call.
    fn new(socket: &Path) -> Daemon {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://localhost")
            .timeout(PATIENCE)
            .connect_with_connector_lazy(connect);
        Daemon {
            socket: socket.to_owned(),
            client: AdminServiceClient::new(channel).max_decoding_message_size(MAX_REPLY),
        }
    }

    fn answer<T>(&self, reply: Result<tonic::Response<T>, Status>) -> Result<T, Error> {
        match reply {
            Ok(reply) => Ok(reply.into_inner()),
            Err(source)
                if matches!(
                    source.code(),
                    Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
                ) =>
            {
                Err(Error::NoDaemon {
                    path: self.socket.clone(),
                    source,
                })
            }
            Err(refused) => Err(Error::Refused(refused)),
        }
    }

    async fn explain(&mut self, name: String) -> Result<admin::ExplainReply, Error> {
        let reply = self.client.explain(admin::ExplainRequest { name }).await;
        self.answer(reply)
    }
}

/// Prints a reply as JSON, or its text.
fn say(json: bool, reply: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Io {
        what: "print the answer".to_owned(),
        source,
    };
    let mut out = io::stdout().lock();
    if json {
        let object = serde_json::to_string(reply).map_err(|error| failed(error.into()))?;
        writeln!(out, "{object}").map_err(failed)
    } else {
        out.write_all(text().as_bytes()).map_err(failed)
    }
}

/// The width of the terminal; `None` where the output goes elsewhere.
fn width() -> Option<usize> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    coracle_sys::terminal::columns(&out).map(usize::from)
}

/// The log of a container of the newest of `pods`.
fn log_of<'a>(
    pods: &'a [admin::Explained],
    name: Option<&str>,
) -> Result<&'a admin::Container, Error> {
    let containers = pods.iter().rev().map(|pod| &pod.containers);
    let containers = containers.into_iter().find(|all| !all.is_empty());
    let containers = containers.map_or(&[][..], Vec::as_slice);
    let named = |one: &&admin::Container| name.is_none_or(|name| one.name == name);
    let mut found: Vec<_> = containers.iter().filter(named).collect();
    // Of several attempts the last one counts.
    found.sort_by_key(|one| one.created_at);
    let names: std::collections::BTreeSet<&str> =
        found.iter().map(|one| one.name.as_str()).collect();
    match (found.last(), names.len()) {
        (Some(last), 1) if last.log_path.is_empty() => Err(Error::Unclear(format!(
            "container {} has no log: its output is discarded",
            last.name
        ))),
        (Some(last), 1) => Ok(last),
        (Some(_), _) => {
            let names: Vec<&str> = names.into_iter().collect();
            Err(Error::Unclear(format!(
                "which container? {}",
                names.join(", ")
            )))
        }
        (None, _) => Err(Error::Unclear("the pod has no such container".to_owned())),
    }
}

/// Copies a log; with `follow` until the container has ended.
async fn copy_log(
    daemon: &mut Daemon,
    container: &admin::Container,
    follow: bool,
) -> Result<u8, Error> {
    let path = &container.log_path;
    let failed = |source: io::Error| Error::Io {
        what: format!("read {path}"),
        source,
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut lines = Lines::default();
    loop {
        // Whether it has ended is asked before its log is read to its end.
        let ended = !follow || has_ended(daemon, &container.id).await?;
        let mut part = String::new();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        part.push_str(&String::from_utf8_lossy(&bytes));
        let text = lines.shown(&part);
        let mut out = io::stdout().lock();
        let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        printed.map_err(|source| Error::Io {
            what: "print the log".to_owned(),
            source,
        })?;
        drop(out);
        if ended {
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
        // The kubelet moves a log away when it is large; the new one is read from its beginning.
        let moved = std::fs::metadata(path).is_ok_and(|now| is_other(&now, &file));
        if moved {
            file = std::fs::File::open(path).map_err(failed)?;
        } else if file
            .metadata()
            .is_ok_and(|now| now.len() < file.stream_position().unwrap_or(0))
        {
            file.rewind().map_err(failed)?;
        }
    }
}

fn is_other(now: &std::fs::Metadata, file: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata()
        .is_ok_and(|open| (open.dev(), open.ino()) != (now.dev(), now.ino()))
}

async fn has_ended(daemon: &mut Daemon, id: &str) -> Result<bool, Error> {
    match daemon.explain(id.to_owned()).await {
        Ok(reply) => {
            let containers = reply.pods.iter().flat_map(|pod| &pod.containers);
            let mut mine = containers.filter(|one| one.id == id);
            Ok(mine.next().is_none_or(|one| one.finished_at > 0))
        }
        Err(Error::Refused(status)) if status.code() == Code::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the text of a log out of its lines. Source: the format of CRI logs, `TIME STREAM P|F TEXT`.
#[derive(Default)]
struct Lines {
    rest: String,
}

impl Lines {
    /// What the whole lines in `more`, after what was left of the last time, say.
    fn shown(&mut self, more: &str) -> String {
        self.rest.push_str(more);
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.rest.drain(..whole).collect();
        let mut text = String::new();
        for line in lines.lines() {
            let mut fields = line.splitn(4, ' ');
            let (tag, said) = (fields.nth(2), fields.next());
            text.push_str(said.unwrap_or(""));
            if tag != Some("P") {
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn parts_of_lines_are_joined_and_cut_ones_wait() {
        let mut lines = Lines::default();
        let text = "2026-01-01T00:00:00Z stdout F hello world\n\
             2026-01-01T00:00:00Z stderr P a\n2026-01-01T00:00:00Z stderr F b\n2026-01-01T00";
        assert_eq!(lines.shown(text), "hello world\nab\n");
        assert_eq!(lines.shown(":00:00Z stdout F \n"), "\n");
    }

    #[test]
    fn a_container_has_to_be_named_where_there_are_several() {
        let container = |name: &str, created_at| admin::Container {
            name: name.to_owned(),
            log_path: format!("/log/{name}/{created_at}"),
            created_at,
            ..admin::Container::default()
        };
        let pods = [admin::Explained {
            containers: vec![container("a", 2), container("a", 1), container("b", 3)],
            ..admin::Explained::default()
        }];
        let which = log_of(&pods, None).unwrap_err().to_string();
        assert_eq!(which, "which container? a, b");
        assert_eq!(log_of(&pods, Some("a")).unwrap().created_at, 2);
        assert!(log_of(&pods, Some("c")).is_err());
        assert!(log_of(&[], None).is_err());
    }
}
