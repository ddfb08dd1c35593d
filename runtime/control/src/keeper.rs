//! The daemon's side of a keeper's control connection.
//!
//! Called by the daemon's drivers of pods. One task per connection reads and writes; callers wait for the answer to
//! their numbered request with a deadline.
//! Invariants: a hung keeper delays only its callers; what they want of it is refused once there is no [`Room`] for
//! more; when the connection ends, every waiter gets an error.
//! It must not know what to do about a keeper that does not answer.

mod attach;
mod exec;
mod greeting;
mod socket;
mod wire;

pub use attach::{AttachOptions, Attached};
pub use exec::{Exec, ExecOptions, ExecStreams};
pub use socket::bind_control;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_channel::mpsc;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use wire::{Ends, Reply, Room, Sent, lock, run_connection};

use crate::frame::Frame;
use crate::messages::{Answer, LinuxStart, Request, StartMessage, ToKeeper};
use crate::process::Process;
use coracle_sandbox::Filters;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, Exit, Workload};
use coracle_sys::memfd::sealed;

/// How long a keeper may take for an answer that depends only on itself.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a container process may take to build its jail and load its program.
const START: Duration = Duration::from_secs(30);

/// The protocol version since which keepers run Linux payloads.
const LINUX_PROTOCOL: u64 = 2;
/// The protocol version since which keepers support terminals and attach.
const STREAMING_PROTOCOL: u64 = 3;

/// Most events of a keeper that wait for the pod's driver. A keeper that sends more is hung up on: the greeting of the next
/// connection has the exits.
const MAX_EVENTS: usize = 4096;
/// Most containers that a keeper may list.
const MAX_LISTED: usize = 16_384;
/// The protocol version since which keepers run the hooks of a container's devices, and set how it is scheduled.
const HOOKS_PROTOCOL: u64 = 5;

/// A connection to one keeper; cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    requests: mpsc::UnboundedSender<Sent>,
    /// Room for requests that wait to be sent.
    room: Room,
    numbers: Arc<AtomicU64>,
    /// Newest protocol version that it speaks.
    protocol: Arc<AtomicU64>,
    /// Waiters for the exits of execs, by the request that started them.
    ends: Ends,
}

/// A keeper's answer to the first request.
#[derive(Debug)]
pub struct Greeting {
    /// Newest protocol version it speaks.
    pub protocol: u32,
    /// The hash of the engine that runs its guests.
    pub engine_hash: String,
    /// Its containers, exited ones included until they are forgotten.
    pub containers: Vec<KeeperContainer>,
}

/// One container of a [`Greeting`].
#[derive(Debug)]
pub struct KeeperContainer {
    /// Its id.
    pub id: ContainerId,
    /// The process while it runs.
    pub process: Option<Process>,
    /// Its exit, if it has exited.
    pub exit: Option<Exit>,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
    /// Whether it is still starting; [`Keeper::await_start`] waits for that.
    pub starting: bool,
}

/// Options of [`Keeper::start`].
pub struct StartOptions {
    /// Which container.
    pub container: ContainerId,
    /// Its spec; only its own process reads it.
    pub spec: ContainerSpec,
    /// What its payload needs besides the spec.
    pub payload: StartPayload,
    /// Its cgroup in the unified tree, into which it is forked.
    pub cgroup: Option<OwnedFd>,
    /// The log file, open for appending; `None` discards output.
    pub log: Option<OwnedFd>,
}

/// What a payload needs besides its spec.
pub enum StartPayload {
    /// WebAssembly: compiled code, read-only.
    Wasm(OwnedFd),
    /// A Linux program: its seccomp filter, if it has one.
    Linux(Option<OwnedFd>),
}

/// A container process that runs.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Process,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
}

/// An event that a keeper sends.
#[derive(Debug)]
pub enum KeeperEvent {
    /// A container ended; its exit record is on disk.
    Exited {
        /// Which.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// The connection ended. This is the last event.
    Closed,
}

impl Keeper {
    /// Connects to the keeper at `socket` and reads its greeting, both within `deadline`.
    ///
    /// Errors: [`Kind::Gone`] when nobody listens, [`Kind::Deadline`] when the keeper does not answer.
    pub async fn connect(
        socket: &Path,
        deadline: Duration,
    ) -> Result<(Self, Greeting, mpsc::Receiver<KeeperEvent>)> {
        let what = || format!("connect to keeper {}", socket.display());
        let (_directory, short) =
            socket::short(socket).map_err(|e| Error::with(Kind::Gone, what(), e))?;
        let stream = tokio::time::timeout(deadline, UnixStream::connect(short))
            .await
            .map_err(|e| Error::with(Kind::Deadline, what(), e))?
            .map_err(|e| Error::with(Kind::Gone, what(), e))?;
        let (requests, queue) = mpsc::unbounded();
        let (events, received) = mpsc::channel(MAX_EVENTS);
        let ends = Ends::default();
        tokio::spawn(run_connection(stream, queue, events, Arc::clone(&ends)));
        let keeper = Self {
            requests,
            room: Room::default(),
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

    /// Tells the keeper that its pod is recorded, so that it outlives its lifeline.
    ///
    /// Errors: the keeper is gone or does not answer.
    pub async fn commit(&self) -> Result<()> {
        self.done(Request::Commit, Vec::new()).await
    }

    /// Forks a container process and waits until its jail is built and its program is loaded.
    ///
    /// Errors: [`Kind::StartFailed`] when the process failed to start and left an exit record; [`Kind::Invalid`] when
    /// the keeper refused; [`Kind::Gone`] or [`Kind::Deadline`] when the keeper did not answer.
    pub async fn start(&self, options: StartOptions, filters: &Filters) -> Result<Started> {
        let (mut fds, linux) = self.payload(&options.spec, options.payload, filters)?;
        let (log, into_cgroup) = (options.log.is_some(), options.cgroup.is_some());
        fds.extend(options.cgroup);
        fds.extend(options.log);
        let tty = matches!(&options.spec.workload, Workload::Wasm(wasm) if wasm.tty);
        let body = Request::Start(StartMessage {
            container: options.container.clone(),
            stdin: options.spec.workload.stdin(),
            log,
            into_cgroup,
            linux,
            tty,
        });
        self.send_start(body, fds).await
    }

    /// Waits until a container that was [`KeeperContainer::starting`] runs or has failed to start.
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

    /// The first descriptors of a container process, and what its keeper must know about a Linux payload.
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
                self.require_protocol(
                    match linux.hooks.is_empty() && linux.jail.scheduling.is_usual() {
                        true => LINUX_PROTOCOL,
                        false => HOOKS_PROTOCOL,
                    },
                )?;
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
                "the payload's options do not fit the kind of workload in its spec",
            )),
        }
    }

    /// Switches the container's log to the file `log`. Errors: the keeper is gone, or the log is stalled.
    pub async fn reopen_log(&self, container: &ContainerId, log: OwnedFd) -> Result<()> {
        self.done(
            Request::ReopenLog {
                container: container.clone(),
            },
            vec![log],
        )
        .await
    }

    /// Forgets an exited container and deletes its exit record. Errors: the keeper is gone or does not answer.
    pub async fn forget(&self, container: &ContainerId) -> Result<()> {
        self.done(
            Request::Forget {
                container: container.clone(),
            },
            Vec::new(),
        )
        .await
    }

    /// Makes the keeper exit as soon as none of its containers runs. Errors: the keeper is gone or does not answer.
    pub async fn leave(&self) -> Result<()> {
        self.done(Request::Leave, Vec::new()).await
    }

    /// Errors: the keeper is of an older build that does not understand `version`.
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
        let sent = Sent {
            place: self.room.place(frame.body.len())?,
            frame,
            request,
            reply,
        };
        self.requests.unbounded_send(sent).map_err(|_| gone())?;
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
