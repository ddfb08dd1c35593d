//! The commands for the running daemon.
//!
//! Called by: the command line of the shim. Invariants: `--json` prints the reply as it came, one object; without a daemon
//! the exit code is 2; a reader that closes the pipe is no error.
//! Must not know: how the daemon finds the answers.

mod arguments;
mod control;
mod log;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_proto::admin::v1 as admin;
use coracle_proto::admin::v1::admin_service_client::AdminServiceClient;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

pub use arguments::{Command, Debug, Place};

use super::dump::{self, Item};
use super::print;
use super::screen::{self, Screen, escaped};
use super::server::now;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The exit code without a daemon.
pub(super) const NO_DAEMON: u8 = 2;
/// The largest reply, bytes.
const MAX_REPLY: usize = 64 << 20;

/// The path that an argument names. Unlike clap's own parser it takes an empty one, which means none.
///
/// Errors: none.
pub fn any_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
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
            let text = screen::plain(&format!("coracle: {error}{cause}"));
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
            say(json, &status, || {
                print::status(&status, Screen::of_output())
            })?;
            Ok(u8::from(!status.ready))
        }
        Command::Ps { all, .. } => {
            let request = admin::ListContainersRequest { all };
            containers(&mut daemon, request, json).await
        }
        Command::Why { name, .. } => {
            let explained = daemon.explain(name).await?;
            let text = || print::explained(&explained.pods, now(), Screen::of_output());
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
            let for_s = duration.unwrap_or(0);
            control::set_log_level(&mut daemon, (level, target, for_s), json).await
        }
        Command::Debug { command } => debug(command, &mut daemon, local).await,
    }
}

async fn debug(
    command: Debug,
    daemon: &mut Daemon,
    local: &dyn Fn() -> Vec<Item>,
) -> Result<u8, Error> {
    match command {
        Debug::Tasks { place } => control::tasks(daemon, place.json).await,
        Debug::Dump { output, .. } => dump::write(daemon, output, local()).await,
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
    say(json, &listed, || Screen::of_output().table(&rows()))?;
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
            Screen::default().table(&rows[from..])
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
        writeln!(out, "{}", escaped(&object)).map_err(failed)
    } else {
        out.write_all(text().as_bytes()).map_err(failed)
    }
}
