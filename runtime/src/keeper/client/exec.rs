//! The daemon's half of an exec: a process in a running container, whose streams are the daemon's own.
//!
//! Invariant: whoever started it is told of its end, or that the keeper is gone.
//! Not here: reading the streams, deadlines, killing.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::sync::oneshot;

use super::{Keeper, START, STREAMING_PROTOCOL, StartPayload, lock, started};
use crate::control::messages::Request;
use crate::process::Process;
use coracle_cgroup::KillList;
use coracle_sandbox::Filters;
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, Exit};
use std::sync::atomic::Ordering;

/// What a process is forked into a container with.
pub struct ExecOptions {
    /// Which container.
    pub container: ContainerId,
    /// The container's spec with the words of this process.
    pub spec: ContainerSpec,
    /// What its payload needs beside that.
    pub payload: StartPayload,
    /// Its own cgroup in the unified tree, into which it is born.
    pub cgroup: Option<OwnedFd>,
    /// Its standard streams.
    pub streams: ExecStreams,
    /// Files to which the keeper writes `1` to kill its whole tree when this daemon is gone.
    pub kill: Vec<PathBuf>,
    /// How it does that where there is no such file.
    pub kill_list: Option<KillList>,
}

/// Standard streams of a process that is forked into a container.
pub enum ExecStreams {
    /// The daemon's.
    Given {
        /// Standard input; reads as ended if there is none.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container, made by the process. Linux payloads only.
    OwnTerminal,
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Process,
    /// The controlling side of its own terminal, which does not block.
    pub terminal: Option<OwnedFd>,
    end: oneshot::Receiver<Exit>,
}

impl Exec {
    /// Waits for its end. Errors: [`Kind::Gone`] when the keeper was lost before.
    pub async fn ended(&mut self) -> Result<Exit> {
        let gone = |_| Error::new(Kind::Gone, "the keeper was lost with what it ran");
        (&mut self.end).await.map_err(gone)
    }
}

impl Keeper {
    /// Forks a process into a running container and waits until it runs.
    ///
    /// Errors: [`Kind::StartFailed`] when its program cannot be executed, [`Kind::WrongPhase`] or [`Kind::Invalid`] when
    /// the container does not run; [`Kind::Gone`] or [`Kind::Deadline`] when the keeper did not answer.
    pub async fn exec(&self, options: ExecOptions, filters: &Filters) -> Result<Exec> {
        let (mut fds, linux) = self.payload(&options.spec, options.payload, filters)?;
        let into_cgroup = options.cgroup.is_some();
        fds.extend(options.cgroup);
        let stdin = match options.streams {
            ExecStreams::OwnTerminal => {
                self.require_protocol(STREAMING_PROTOCOL)?;
                false
            }
            ExecStreams::Given {
                stdin,
                stdout,
                stderr,
            } => {
                let has_stdin = stdin.is_some();
                fds.extend(stdin.into_iter().chain([stdout, stderr]));
                has_stdin
            }
        };
        let body = Request::Exec {
            container: options.container,
            stdin,
            into_cgroup,
            linux,
            kill: options.kill,
            kill_list: options.kill_list,
        };
        let request = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, end) = oneshot::channel();
        // Before it is asked for: its end may be told right after its start.
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
                // What was asked is ours and whole: if the keeper cannot do it, the container is not what it was.
                Err(match e.kind() {
                    Kind::Invalid => Error::with(Kind::WrongPhase, "the container has changed", e),
                    _ => e,
                })
            }
        }
    }
}

/// Whoever waits for an exec's end, until it is known to run: then its end is told, whether anybody still waits or not.
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
