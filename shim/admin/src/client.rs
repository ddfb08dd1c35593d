//! The commands for the running daemon.
//!
//! Called by: the command line of the shim. Invariants: `--json` prints the reply as it came, one object; without a daemon
//! the exit code is 2; a reader that closes the pipe is no error.
//! Must not know: how the daemon finds the answers.

mod control;
mod log;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use coracle_proto::admin::v1 as admin;
use coracle_proto::admin::v1::admin_service_client::AdminServiceClient;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::dump::{self, Item};
use super::print;
use super::server::now;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The exit code without a daemon.
pub(super) const NO_DAEMON: u8 = 2;
/// The largest reply, bytes.
const MAX_REPLY: usize = 64 << 20;

/// Where the daemon is.
#[derive(Clone, Debug, Default, Args)]
pub struct Place {
    /// Configuration file, which names the run directory; /etc/coracle/config.toml if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of drop-ins; conf.d beside the configuration file if it exists, "" for none
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
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
    /// Read the configuration again; print which changed settings hold now, and which wait for a restart
    Reload {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// Change which lines the daemon logs, for a time or until it ends
    LogLevel {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// error, warn, info, debug or trace; "configured" ends earlier changes
        #[arg(value_parser = ["error", "warn", "info", "debug", "trace", "configured"])]
        level: String,
        /// Only lines of modules whose path begins so, as coracle_network::cni, or of a library, as h2
        #[arg(long, value_name = "MODULE", default_value = "")]
        target: String,
        /// How long, as 30s, 10m or 2h; until the daemon ends unless set
        #[arg(long = "for", value_name = "TIME", value_parser = control::seconds)]
        duration: Option<u64>,
    },
    /// Look into the daemon, to find what hangs or to report a bug
    Debug {
        /// Which.
        #[command(subcommand)]
        command: Debug,
    },
}

/// `coracle debug ...`.
#[derive(Debug, Subcommand)]
pub enum Debug {
    /// List what the driver of each pod does and waits for
    Tasks {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// Write what a bug report needs to an archive: status, containers, events, log, metrics, configuration, the node. It has
    /// no environment, arguments, annotations or credentials of pods
    Dump {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// The file, which must not exist; - for standard output; coracle-dump-TIME.tar.zst unless set
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Command {
    /// Where the daemon is.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Command::Reload { place }
            | Command::LogLevel { place, .. }
            | Command::Debug {
                command: Debug::Tasks { place } | Debug::Dump { place, .. },
            } => place,
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

/// Runs `command` with the daemon whose admin socket is `socket`; returns the exit code. `local` is what a dump has of the node
/// beside the daemon's answers.
pub fn main(command: Command, socket: &Path, local: &dyn Fn() -> Vec<Item>) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(command, socket, local)),
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
            // The daemon's messages can quote what an image or a pod contains.
            let text = print::plain(&format!("coracle: {error}{cause}"));
            // Without standard error nobody can read it.
            let _ = writeln!(io::stderr(), "{text}");
            match error {
                Error::NoDaemon { .. } => NO_DAEMON,
                _ => 1,
            }
        }
    }
}

async fn run(command: Command, socket: &Path, local: &dyn Fn() -> Vec<Item>) -> Result<u8, Error> {
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
            containers(&mut daemon, request, json).await
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
            let log = log::of(&explained.pods, container.as_deref())?;
            log::copy(&mut daemon, log, follow).await
        }
        Command::Events { since, follow, .. } => {
            let request = admin::EventsRequest {
                since_s: since,
                follow,
            };
            events(&mut daemon, request, json).await
        }
        Command::Reload { .. } => control::reload(&mut daemon, json).await,
        Command::LogLevel {
            level,
            target,
            duration,
            ..
        } => {
            let request = admin::SetLogLevelRequest {
                level: if level == "configured" {
                    String::new()
                } else {
                    level
                },
                target,
                for_s: duration.unwrap_or(0),
            };
            control::set_log_level(&mut daemon, request, json).await
        }
        Command::Debug { command } => match command {
            Debug::Tasks { .. } => control::tasks(&mut daemon, json).await,
            Debug::Dump { output, .. } => dump::write(&mut daemon, output, local()).await,
        },
    }
}

async fn containers(
    daemon: &mut Daemon,
    request: admin::ListContainersRequest,
    json: bool,
) -> Result<u8, Error> {
    let listed = daemon.client.list_containers(request).await;
    let listed = daemon.answer(listed)?;
    let rows = || print::containers(&listed.containers, now());
    say(json, &listed, || print::table(&rows(), width()))?;
    Ok(0)
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
pub(super) struct Daemon {
    /// The admin socket.
    pub socket: PathBuf,
    /// The client of its service.
    pub client: AdminServiceClient<Channel>,
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

    /// The reply. Errors: NoDaemon where nobody answered; Refused.
    pub fn answer<T>(&self, reply: Result<tonic::Response<T>, Status>) -> Result<T, Error> {
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
