//! The daemon's half of a keeper's control connection.
//!
//! One task a connection reads and writes; callers wait for their numbered answer with a deadline.
//! Invariant: a hung keeper delays nobody but who asked it; when the connection ends every waiter learns it.
//! Not here: what to do about a keeper that does not answer.

mod attach;
mod exec;
mod greeting;
mod wire;

pub use attach::{AttachOptions, Attached};
pub use exec::{Exec, ExecOptions, ExecStreams};

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use wire::{Ends, Reply, lock, run_connection};

use crate::control::Frame;
use crate::control::messages::{Answer, LinuxStart, Request, ToKeeper};
use crate::process::Process;
use coracle_sandbox::Filters;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, Exit, Workload};
use coracle_sys::memfd::sealed;

/// How long a keeper may take for an answer that only needs itself.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a guest's jail and load may take.
const START: Duration = Duration::from_secs(30);

/// The protocol since which keepers run Linux payloads.
const LINUX_PROTOCOL: u64 = 2;
/// The protocol since which keepers make terminals and take clients.
const STREAMING_PROTOCOL: u64 = 3;

/// A connection to one keeper; cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    requests: mpsc::UnboundedSender<(Frame, u64, oneshot::Sender<Reply>)>,
    numbers: Arc<AtomicU64>,
    /// Newest protocol that it speaks.
    protocol: Arc<AtomicU64>,
    /// Who waits for the end of which exec, by the request that started it.
    ends: Ends,
}

/// What a keeper says first.
#[derive(Debug)]
pub struct Greeting {
    /// Newest protocol it speaks.
    pub protocol: u32,
    /// The engine that its guests run on.
    pub engine_hash: String,
    /// Its containers, ended ones included until they are forgotten.
    pub containers: Vec<KeeperContainer>,
}

/// One container of a [`Greeting`].
#[derive(Debug)]
pub struct KeeperContainer {
    /// Its id.
    pub id: ContainerId,
    /// The process while it runs.
    pub process: Option<Process>,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
    /// Whether its start is still under way; [`Keeper::await_start`] waits for its end.
    pub starting: bool,
}

/// What a guest is started with.
pub struct StartOptions {
    /// Which container.
    pub container: ContainerId,
    /// What it is; only the guest reads it.
    pub spec: ContainerSpec,
    /// What its payload needs beside the spec.
    pub payload: StartPayload,
    /// Its cgroup in the unified tree, into which it is born.
    pub cgroup: Option<OwnedFd>,
    /// The log file, open for appending; `None` discards output.
    pub log: Option<OwnedFd>,
}

/// What a payload needs beside its spec.
pub enum StartPayload {
    /// WebAssembly: compiled code, read-only.
    Wasm(OwnedFd),
    /// A Linux program: its seccomp filter, if it has one.
    Linux(Option<OwnedFd>),
}

/// A guest that runs.
#[derive(Debug)]
pub struct Started {
    /// The guest process.
    pub process: Process,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
}

/// What a keeper says unasked.
#[derive(Debug)]
pub enum KeeperEvent {
    /// A container ended; its exit record is on disk.
    Exited {
        /// Which.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// The connection ended; nothing follows.
    Closed,
}

impl Keeper {
    /// Connects to the keeper at `socket` and hears its greeting, both within `deadline`.
    ///
    /// Errors: [`Kind::Gone`] when nobody listens, [`Kind::Deadline`] when the keeper is silent.
    pub async fn connect(
        socket: &Path,
        deadline: Duration,
    ) -> Result<(Self, Greeting, mpsc::UnboundedReceiver<KeeperEvent>)> {
        let what = || format!("connect to keeper {}", socket.display());
        let (_directory, short) =
            super::short(socket).map_err(|e| Error::with(Kind::Gone, what(), e))?;
        let stream = tokio::time::timeout(deadline, UnixStream::connect(short))
            .await
            .map_err(|e| Error::with(Kind::Deadline, what(), e))?
            .map_err(|e| Error::with(Kind::Gone, what(), e))?;
        let (requests, queue) = mpsc::unbounded_channel();
        let (events, received) = mpsc::unbounded_channel();
        let ends = Ends::default();
        tokio::spawn(run_connection(stream, queue, events, Arc::clone(&ends)));
        let keeper = Self {
            requests,
            numbers: Arc::default(),
            protocol: Arc::default(),
            ends,
        };
        let greeting = tokio::time::timeout(deadline, keeper.greeting(deadline));
        let greeting = greeting
            .await
            .map_err(|e| Error::with(Kind::Deadline, what(), e))??;
        keeper
            .protocol
            .store(greeting.protocol.into(), Ordering::Relaxed);
        Ok((keeper, greeting, received))
    }

    /// Tells the keeper that its pod is recorded, so that it lives without its lifeline.
    ///
    /// Errors: the keeper is gone or silent.
    pub async fn commit(&self) -> Result<()> {
        self.done(Request::Commit, Vec::new()).await
    }

    /// Forks a guest and waits until its jail stands and its program is loaded.
    ///
    /// Errors: [`Kind::StartFailed`] when the guest failed to start and left an exit record; [`Kind::Invalid`] when
    /// the keeper refused; [`Kind::Gone`] or [`Kind::Deadline`] when the keeper did not answer.
    pub async fn start(&self, options: StartOptions, filters: &Filters) -> Result<Started> {
        let (mut fds, linux) = self.payload(&options.spec, options.payload, filters)?;
        let (log, into_cgroup) = (options.log.is_some(), options.cgroup.is_some());
        fds.extend(options.cgroup);
        fds.extend(options.log);
        let tty = matches!(&options.spec.workload, Workload::Wasm(wasm) if wasm.tty);
        let body = Request::Start {
            container: options.container.clone(),
            stdin: options.spec.workload.stdin(),
            log,
            into_cgroup,
            linux,
            tty,
        };
        self.send_start(body, fds).await
    }

    /// Waits until the start of a container that was [`KeeperContainer::starting`] has ended.
    ///
    /// Errors: as of [`Keeper::start`].
    pub async fn await_start(&self, container: &ContainerId) -> Result<Started> {
        let container = container.clone();
        self.send_start(Request::AwaitStart { container }, Vec::new())
            .await
    }

    async fn send_start(&self, body: Request, fds: Vec<OwnedFd>) -> Result<Started> {
        let (process, started_at, _) = started(self.request(body, fds, START).await?)?;
        Ok(Started {
            process,
            started_at,
        })
    }

    /// The descriptors that a guest's life begins with, and what its keeper must know of a Linux one.
    fn payload(
        &self,
        spec: &ContainerSpec,
        payload: StartPayload,
        filters: &Filters,
    ) -> Result<(Vec<OwnedFd>, Option<LinuxStart>)> {
        let what = || format!("hand over the spec of container {}", spec.id);
        let text = serde_json::to_vec(spec).map_err(|e| Error::with(Kind::Bug, what(), e))?;
        let clone = |fd: &OwnedFd| fd.try_clone().during(what);
        let mut fds = vec![sealed("spec", &text).during(what)?];
        match (payload, &spec.workload) {
            (StartPayload::Wasm(code), Workload::Wasm(wasm)) => {
                if wasm.tty || wasm.toolbox.is_some() {
                    self.require_protocol(STREAMING_PROTOCOL)?;
                }
                let [first, second] = filters.of(wasm);
                fds.extend([code, clone(first)?, clone(second)?]);
                Ok((fds, None))
            }
            (StartPayload::Linux(filter), Workload::Linux(linux)) => {
                self.require_protocol(LINUX_PROTOCOL)?;
                let filtered = filter.is_some();
                fds.extend(filter);
                let start = LinuxStart {
                    pid: linux.jail.pid.clone(),
                    filter: filtered,
                    tty: linux.jail.tty,
                    shm_bytes: linux.jail.shm_bytes,
                    shm_label: linux.jail.shm_label.clone(),
                };
                Ok((fds, Some(start)))
            }
            (StartPayload::Linux(_), Workload::Wasm(_))
            | (StartPayload::Wasm(_), Workload::Linux(_)) => Err(Error::new(
                Kind::Bug,
                "a spec came with what the other kind of payload needs",
            )),
        }
    }

    /// Has the container's log written to `log` from now on. Errors: the keeper is gone, or the log is stalled.
    pub async fn reopen_log(&self, container: &ContainerId, log: OwnedFd) -> Result<()> {
        self.done(
            Request::ReopenLog {
                container: container.clone(),
            },
            vec![log],
        )
        .await
    }

    /// Drops an exited container and its exit record. Errors: the keeper is gone or silent.
    pub async fn forget(&self, container: &ContainerId) -> Result<()> {
        self.done(
            Request::Forget {
                container: container.clone(),
            },
            Vec::new(),
        )
        .await
    }

    /// Ends the keeper as soon as no container of it runs. Errors: the keeper is gone or silent.
    pub async fn leave(&self) -> Result<()> {
        self.done(Request::Leave, Vec::new()).await
    }

    /// Refuses what a keeper of an older build does not understand.
    fn require_protocol(&self, needed: u64) -> Result<()> {
        let spoken = self.protocol.load(Ordering::Relaxed);
        if spoken >= needed {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "the pod's keeper speaks protocol {spoken}, {needed} is needed; \
                 it is of an older build, and a new pod gets a new one"
            ),
        ))
    }

    async fn done(&self, body: Request, fds: Vec<OwnedFd>) -> Result<()> {
        match self.request(body, fds, PROMPT).await?.0 {
            Answer::Done => Ok(()),
            Answer::Failed { message, .. } => Err(Error::new(Kind::WrongPhase, message)),
            other => Err(unexpected(&other)),
        }
    }

    async fn request(&self, body: Request, fds: Vec<OwnedFd>, deadline: Duration) -> Result<Reply> {
        let request = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.send_request(request, body, fds, deadline).await
    }

    async fn send_request(
        &self,
        request: u64,
        body: Request,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<Reply> {
        let gone = || Error::new(Kind::Gone, "the keeper's connection ended");
        let frame = Frame::pack(&ToKeeper { request, body }, fds)
            .during(|| "pack a request to a keeper".into())?;
        let (reply, answer) = oneshot::channel();
        self.requests
            .send((frame, request, reply))
            .map_err(|_| gone())?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Error::new(
                Kind::Deadline,
                format!("the keeper did not answer within {} s", deadline.as_secs()),
            )),
        }
    }
}

/// The process of a start or an exec, when it was started, and the controlling side of an exec's own terminal.
fn started(reply: Reply) -> Result<(Process, i64, Option<OwnedFd>)> {
    match reply {
        (Answer::Started { started_at }, fds) => {
            let mut fds = fds.into_iter();
            let pidfd = fds.next();
            let pidfd = pidfd.ok_or_else(|| Error::new(Kind::Bug, "the keeper sent no pidfd"))?;
            Ok((Process::from_pidfd(pidfd)?, started_at, fds.next()))
        }
        (
            Answer::Failed {
                start_failed,
                message,
            },
            _,
        ) => Err(Error::new(
            if start_failed {
                Kind::StartFailed
            } else {
                Kind::Invalid
            },
            message,
        )),
        (other, _) => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::new(Kind::Bug, format!("the keeper answered {answer:?}"))
}
