//! The daemon's side of an exec: a process in a running container, whose streams the daemon holds.
//!
//! Called by the daemon's ExecSync and streaming. Invariant: the caller learns its exit, or that the keeper is gone.
//! It must not read the streams, set deadlines or kill.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::sync::oneshot;

use super::{Keeper, START, STREAMING_PROTOCOL, StartPayload, lock, started};
use crate::messages::{ExecMessage, Request};
use crate::process::Process;
use coracle_cgroup::KillList;
use coracle_sandbox::Filters;
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, Exit};
use std::sync::atomic::Ordering;

/// Options of [`Keeper::exec`].
pub struct ExecOptions {
    /// Which container.
    pub container: ContainerId,
    /// The container's spec with the arguments of this process.
    pub spec: ContainerSpec,
    /// What its payload needs besides that.
    pub payload: StartPayload,
    /// Its own cgroup in the unified tree, into which it is forked.
    pub cgroup: Option<OwnedFd>,
    /// Its standard streams.
    pub streams: ExecStreams,
    /// Files to which the keeper writes `1` to kill its whole tree if this daemon disappears.
    pub kill: Vec<PathBuf>,
    /// How it does that where there is no such file.
    pub kill_list: Option<KillList>,
}

/// Standard streams of an exec.
pub enum ExecStreams {
    /// Descriptors of the daemon.
    Given {
        /// Standard input; at its end if `None`.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container, opened by the process. Linux payloads only.
    OwnTerminal,
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Process,
    /// The controlling side of its own terminal, non-blocking.
    pub terminal: Option<OwnedFd>,
    end: oneshot::Receiver<Exit>,
}

impl Exec {
    /// Waits for its exit. Errors: [`Kind::Gone`] when the keeper was lost before.
    pub async fn ended(&mut self) -> Result<Exit> {
        let gone = |_| Error::new(Kind::Gone, "the keeper was lost with what it ran");
        (&mut self.end).await.map_err(gone)
    }
}

impl Keeper {
    /// Forks a process into a running container and waits until it runs.
    ///
    /// Errors: [`Kind::StartFailed`] when its program cannot be executed, [`Kind::WrongPhase`] or [`Kind::Invalid`]
    /// when the container does not run; [`Kind::Gone`] or [`Kind::Deadline`] when the keeper did not answer.
    pub async fn exec(&self, options: ExecOptions, filters: &Filters) -> Result<Exec> {
        let (mut fds, linux) = self.payload(&options.spec, options.payload, filters)?;
        let into_cgroup = options.cgroup.is_some();
        fds.extend(options.cgroup);
        let stdin = self.push_streams(options.streams, &mut fds)?;
        let body = Request::Exec(ExecMessage {
            container: options.container,
            stdin,
            into_cgroup,
            linux,
            kill: options.kill,
            kill_list: options.kill_list,
        });
        let request = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, end) = oneshot::channel();
        // Before the request is sent: the message about its end may follow its start at once.
        lock(&self.ends).insert(request, sender);
        let mut pending = PendingExec {
            keeper: self,
            request: Some(request),
        };
        let answered = self.send_request(request, body, fds, START).await;
        match answered.and_then(started) {
            Ok((process, _, terminal)) => {
                pending.request = None;
                Ok(Exec {
                    process,
                    terminal,
                    end,
                })
            }
            Err(e) => {
                // The request was valid when it was sent: if the keeper refuses it, the container has changed.
                Err(match e.kind() {
                    Kind::Invalid => Error::with(Kind::WrongPhase, "the container has changed", e),
                    _ => e,
                })
            }
        }
    }

    /// Appends an exec's streams to `fds`; whether standard input is among them.
    fn push_streams(&self, streams: ExecStreams, fds: &mut Vec<OwnedFd>) -> Result<bool> {
        match streams {
            ExecStreams::OwnTerminal => {
                self.require_protocol(STREAMING_PROTOCOL)?;
                Ok(false)
            }
            ExecStreams::Given {
                stdin,
                stdout,
                stderr,
            } => {
                let has_stdin = stdin.is_some();
                fds.extend(stdin.into_iter().chain([stdout, stderr]));
                Ok(has_stdin)
            }
        }
    }
}

/// The waiter for an exec's exit, until the exec is known to run. Drop removes it: an exec that does not run sends no
/// exit.
struct PendingExec<'a> {
    keeper: &'a Keeper,
    request: Option<u64>,
}

impl Drop for PendingExec<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            lock(&self.keeper.ends).remove(&request);
        }
    }
}
