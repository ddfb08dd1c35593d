//! The spawner: a small single-threaded process with a loaded engine, from which every keeper is forked.
//!
//! The daemon execs it (`coracle spawner`), talks to it over a socketpair, and starts a new one if it dies; nothing
//! else is lost then. The process itself is in coracle-runtime.
//! Invariants: every wait has a deadline; the keeper of a failed request ends, because its lifeline is closed with the
//! request.
//! It must not know what a keeper does.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::frame::{Frame, Reader, Writer};
use crate::messages::{FromSpawner, KeeperConfig, ToSpawner};
use crate::process::Process;
use coracle_network::Namespaces;
use coracle_spec::IdRange;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_spec::id::PodId;
use coracle_sys::mounts::{self, Forbid};

/// How long a spawner may take to load its engine.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long it may take to fork.
const FORK: Duration = Duration::from_secs(10);

/// Options of [`Spawner::keeper`].
pub struct NewKeeper {
    /// Its pod.
    pub pod: PodId,
    /// Its control socket, bound and listening; see [`crate::keeper::bind_control`].
    pub listener: OwnedFd,
    /// The directory of its exit records.
    pub exits: PathBuf,
    /// Namespaces that its container processes join.
    pub namespaces: Namespaces,
    /// Whether it lives in the node's pid namespace; then its containers do, too.
    pub host_pid: bool,
    /// OOM killer adjustment.
    pub oom_score_adj: i32,
    /// Its cgroup in the unified tree, into which it is forked.
    pub cgroup: Option<OwnedFd>,
    /// Files to which it writes `0` to enter its other cgroups (v1).
    pub cgroup_procs: Vec<PathBuf>,
    /// The range of host ids of the pod.
    pub range: IdRange,
}

/// A keeper that was just forked.
pub struct KeeperProcess {
    /// The process.
    pub process: Process,
    /// Dropping this ends the keeper, until [`crate::keeper::Keeper::commit`] was answered.
    pub lifeline: OwnedFd,
}

/// The daemon's handle to its spawner; starts a new one when the old one is gone.
pub struct Spawner {
    connection: Mutex<Option<Connection>>,
    engine_hash: String,
    log_counts: Option<PathBuf>,
    restarts: AtomicU64,
}

struct Connection {
    socket: UnixStream,
    reader: Reader,
    writer: Writer,
    requests: u64,
    child: std::process::Child,
}

impl Spawner {
    /// Starts the spawner and waits until its engine is loaded. Its keepers count what they write to logs in the page
    /// `log_counts`, if there is one. Errors: it cannot be started or does not answer.
    pub async fn start(log_counts: Option<PathBuf>) -> Result<Self> {
        let engine_hash = query_engine_hash().await?;
        let connection = Connection::start(&engine_hash, log_counts.as_deref()).await?;
        Ok(Self {
            connection: Mutex::new(Some(connection)),
            engine_hash,
            log_counts,
            restarts: AtomicU64::new(0),
        })
    }

    /// The engine hash that compiled code for this build must have.
    pub fn engine_hash(&self) -> &str {
        &self.engine_hash
    }

    /// How often one was started in place of one that was gone.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Host pid of the spawner process, if there is one.
    pub async fn pid(&self) -> Option<u32> {
        self.connection
            .lock()
            .await
            .as_ref()
            .map(|connection| connection.child.id())
    }

    /// Forks a keeper; if the spawner is dead, tries once more with a new one.
    ///
    /// Errors: the node refused the fork, or no spawner answers.
    pub async fn keeper(&self, keeper: NewKeeper) -> Result<KeeperProcess> {
        failpoint::hit("run.keeper").during(|| format!("fork the keeper of pod {}", keeper.pod))?;
        let mut connection = self.connection.lock().await;
        let mut last = None;
        for _ in 0..2 {
            if connection.is_none() {
                let log_counts = self.log_counts.as_deref();
                *connection = Some(Connection::start(&self.engine_hash, log_counts).await?);
                self.restarts.fetch_add(1, Ordering::Relaxed);
            }
            let Some(open) = connection.as_mut() else {
                continue;
            };
            match open.fork(&keeper).await {
                Err(e) if e.kind() == Kind::Gone || e.kind() == Kind::Deadline => {
                    tracing::warn!(error = %e.chain(), "spawner is gone, starting another");
                    *connection = None;
                    last = Some(e);
                }
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Gone, "no spawner could be started")))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It exits when the socket closes. Do not wait: it may hang.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Connection {
    async fn start(engine_hash: &str, log_counts: Option<&Path>) -> Result<Self> {
        let what = || "start the spawner".to_owned();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().during(what)?;
        ours.set_nonblocking(true).during(what)?;
        let binary = own_binary().inspect_err(|e| {
            tracing::warn!(error = %e, "the spawner's executable is not write-protected by a mount of its own");
        });
        let binary = binary.ok();
        let child = command(binary.as_ref(), &theirs, engine_hash, log_counts)
            .spawn()
            .during(what)?;
        drop(theirs);
        let socket = UnixStream::from_std(ours).during(what)?;
        let mut connection = Self {
            socket,
            reader: Reader::default(),
            writer: Writer::default(),
            requests: 0,
            child,
        };
        match connection.answer(WARM_UP).await?.message().during(what)? {
            FromSpawner::Ready {
                engine_hash: theirs,
            } if theirs == engine_hash => Ok(connection),
            other => Err(Error::new(
                Kind::Bug,
                format!("the spawner began with {other:?}, engine {engine_hash} was expected"),
            )),
        }
    }

    async fn fork(&mut self, keeper: &NewKeeper) -> Result<KeeperProcess> {
        let what = || format!("fork the keeper of pod {}", keeper.pod);
        self.requests += 1;
        let (lifeline, held) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(what)?;
        let frame = keeper.frame(self.requests, lifeline).during(what)?;
        self.writer.push(frame);
        self.send().await?;
        loop {
            let mut frame = self.answer(FORK).await?;
            match frame.message().during(what)? {
                // The answer to an earlier call that was cancelled.
                FromSpawner::Forked { request } | FromSpawner::Failed { request, .. }
                    if request != self.requests => {}
                FromSpawner::Forked { .. } => {
                    let pidfd = frame
                        .fds
                        .pop()
                        .ok_or_else(|| Error::new(Kind::Bug, "the spawner sent no pidfd"))?;
                    return Ok(KeeperProcess {
                        process: Process::from_pidfd(pidfd)?,
                        lifeline: held,
                    });
                }
                FromSpawner::Failed { message, errno, .. } => return Err(failed(message, errno)),
                FromSpawner::Ready { .. } => {
                    return Err(Error::new(Kind::Bug, "the spawner sent Ready twice"));
                }
            }
        }
    }

    async fn send(&mut self) -> Result<()> {
        while !self.writer.is_empty() {
            self.socket.writable().await.map_err(gone)?;
            let (socket, writer) = (&self.socket, &mut self.writer);
            match socket.try_io(Interest::WRITABLE, || writer.flush(socket.as_fd())) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => sent.map_err(gone)?,
            }
        }
        Ok(())
    }

    async fn answer(&mut self, deadline: Duration) -> Result<Frame> {
        let read = async {
            loop {
                self.socket.readable().await.map_err(gone)?;
                let (socket, reader) = (&self.socket, &mut self.reader);
                match socket.try_io(Interest::READABLE, || reader.read(socket.as_fd())) {
                    Ok(Some(frame)) => return Ok(frame),
                    Ok(None) => {
                        return Err(Error::new(Kind::Gone, "the spawner closed its socket"));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(gone(e)),
                }
            }
        };
        tokio::time::timeout(deadline, read)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Kind::Deadline,
                    format!("the spawner did not answer within {} s", deadline.as_secs()),
                ))
            })
    }
}

/// Computes the engine hash in a child process: it takes a compiler, whose memory daemon and spawner shall not hold.
async fn query_engine_hash() -> Result<String> {
    let what = || "compute the engine hash".to_owned();
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .arg("engine-hash")
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(WARM_UP, command.output())
        .await
        .map_err(|e| Error::with(Kind::Deadline, what(), e))?;
    let text = String::from_utf8_lossy(&output.during(what)?.stdout)
        .trim()
        .to_owned();
    if text.len() == 64 {
        Ok(text)
    } else {
        Err(Error::new(
            Kind::Bug,
            format!("{}: the child sent {text:?}", what()),
        ))
    }
}

impl NewKeeper {
    /// The request to the spawner, with copies of the descriptors in the message's order.
    fn frame(&self, request: u64, lifeline: OwnedFd) -> io::Result<Frame> {
        let namespaces = &self.namespaces;
        let given = [
            &self.cgroup,
            &namespaces.net,
            &namespaces.ipc,
            &namespaces.uts,
            &namespaces.user,
        ];
        let mut fds = vec![self.listener.try_clone()?, lifeline];
        for fd in given.into_iter().flatten() {
            fds.push(fd.try_clone()?);
        }
        let message = ToSpawner::Keeper(KeeperConfig {
            request,
            pod: self.pod.clone(),
            exits: self.exits.clone(),
            into_cgroup: self.cgroup.is_some(),
            net: namespaces.net.is_some(),
            ipc: namespaces.ipc.is_some(),
            uts: namespaces.uts.is_some(),
            user: namespaces.user.is_some(),
            host_pid: self.host_pid,
            oom_score_adj: self.oom_score_adj,
            cgroup_procs: self.cgroup_procs.clone(),
            range: self.range,
        });
        Frame::pack(&message, fds)
    }
}

/// The error of a fork that failed in the spawner.
fn failed(message: String, errno: Option<i32>) -> Error {
    let exhausted = matches!(
        errno,
        Some(libc::EAGAIN | libc::ENOMEM | libc::ENOSPC | libc::EMFILE)
    );
    Error::new(if exhausted { Kind::Exhausted } else { Kind::Io }, message)
}

fn gone(cause: io::Error) -> Error {
    Error::with(Kind::Gone, "talk to the spawner", cause)
}

/// Opens our executable through a read-only mount that exists nowhere else. Every keeper and container process runs
/// from it; containers may see it as `/proc/PID/exe`, and nobody can write through that.
///
/// Errors: the kernel lacks the mount calls.
fn own_binary() -> io::Result<OwnedFd> {
    let tree = mounts::clone_tree(Path::new("/proc/self/exe"), false)?;
    mounts::set_attributes(tree.as_fd(), Forbid::WRITES, None, false)?;
    Ok(tree)
}

fn command(
    binary: Option<&OwnedFd>,
    socket: &std::os::unix::net::UnixStream,
    engine_hash: &str,
    log_counts: Option<&Path>,
) -> std::process::Command {
    let path = match binary {
        Some(binary) => format!("/proc/self/fd/{}", binary.as_raw_fd()),
        None => "/proc/self/exe".to_owned(),
    };
    let mut command = std::process::Command::new(path);
    // The arguments leave room for the title of a keeper or container process.
    command
        .arg0("coracle")
        .args(["spawner", engine_hash])
        .arg(failpoint::armed().unwrap_or_default())
        .arg(log_counts.unwrap_or(Path::new("")))
        .arg("-".repeat(96));
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let source = socket.as_raw_fd();
    #[allow(
        unsafe_code,
        reason = "pre_exec is the way to hand down one descriptor"
    )]
    // SAFETY: between fork and exec the closure makes one async-signal-safe call on an integer it owns.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(source, 3) == 3 {
                clear_cloexec()
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    command
}

fn clear_cloexec() -> io::Result<()> {
    // dup2 of 3 onto itself would leave close-on-exec set.
    // SAFETY: descriptor 3 was made by dup2 just now; the borrow ends before anything else uses it.
    #[allow(unsafe_code, reason = "names a descriptor between fork and exec")]
    let three = unsafe { OwnedFd::from_raw_fd(3) };
    let result = rustix::io::fcntl_setfd(&three, rustix::io::FdFlags::empty());
    let _ = three.into_raw_fd();
    Ok(result?)
}
