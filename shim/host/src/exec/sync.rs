//! ExecSync: an exec whose output is collected.
//!
//! Called by: [`super`]. Invariants: output beyond [`OUTPUT_BYTES`] for each stream is read and dropped, so that it
//! neither blocks the program nor fills the daemon; all calls together stay within one [`Budget`], of which those of
//! a namespace never hold more than they leave for others, and a call that exceeds it fails.
//! Must not know: how the program is started.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_control::keeper::{Exec, ExecStreams};
use coracle_lifecycle::{Error, ExecOutput, Kind, StartRequest};
use coracle_streaming::{Budget, Share};
use tokio::net::unix::pipe::Receiver;
use tracing::{Instrument as _, info_span};

use super::leaf::Leaf;
use super::{Stdio, pipe};
use crate::ending::killed;
use crate::{Host, io_error, runtime_error};

/// Most bytes kept of each output stream. Source: kubelet and CRI-O agree on 16 MiB.
pub const OUTPUT_BYTES: usize = 16 << 20;
/// Bytes that every stream may hold regardless of the others: more than the kubelet reads from a probe.
pub const FREE_BYTES: usize = 16 << 10;
/// The capacity of a pipe at most. Source: pipe(7), `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES: usize = 1 << 20;
/// How long a killed exec may take to end.
const KILLED: Duration = Duration::from_secs(3);

impl Host {
    /// Runs `argv` in the running container of `request`. Without `limit` it waits for ever.
    ///
    /// Errors: StartFailed when the program cannot be executed; Deadline when it was killed at its limit; WrongPhase
    /// when the container has ended meanwhile; Exhausted when the node has no memory left for its output.
    pub async fn exec_sync(
        self: &Arc<Self>,
        request: &StartRequest,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let mut leaf = self.exec_leaf(request).await?;
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let given = ExecStreams::Given {
            stdin: None,
            stdout,
            stderr,
        };
        let with = (Stdio::default(), given);
        let order = self.exec_options(request, argv, &leaf.cgroup, with).await?;
        let what = || format!("exec in container {}", request.id);
        let mut streams = Streams::new(out, err, &self.exec_budget, &request.namespace)?;
        let run = async {
            let span = info_span!(target: "otel", "exec");
            let started = request.keeper.exec(order, &self.parts.filters);
            let started = started.instrument(span).await;
            let mut exec = started.map_err(|error| runtime_error(what(), error))?;
            leaf.process = Some(exec.process.clone());
            streams.collect(&mut exec).await
        };
        let ended = match limit {
            Some(limit) => tokio::time::timeout(limit, run).await,
            None => Ok(run.await),
        };
        match ended {
            Ok(code) => {
                let code = code?;
                leaf.ended = true;
                streams.take(code, &what(), &self.exec_budget)
            }
            Err(_) => Err(give_up(&leaf, limit, what()).await),
        }
    }
}

/// Kills an exec at its time limit and waits for its end.
async fn give_up(leaf: &Leaf, limit: Option<Duration>, what: String) -> Error {
    let killed = killed(leaf.cgroup.killing(), || "kill an exec".to_owned()).await;
    if let Some(process) = &leaf.process {
        // Without a cgroup of its own nothing was killed.
        let _ = process.signal(libc::SIGKILL);
        let gone = tokio::time::timeout(KILLED, process.ended()).await;
        if let (Err(error), Err(_)) = (killed, gone) {
            tracing::error!(error = error.chain(), "an exec outlives SIGKILL");
        }
    }
    let limit = limit.unwrap_or_default();
    Error::new(
        Kind::Deadline,
        format!("{what}: it did not end within {limit:?} and was killed"),
    )
}

/// The read ends of an exec's output, and the output so far.
struct Streams([Output; 2]);

impl Streams {
    /// Those of an exec in a pod of `namespace`.
    fn new(out: OwnedFd, err: OwnedFd, budget: &Budget, namespace: &str) -> Result<Self, Error> {
        Ok(Self([
            Output::new(out, budget.share_of(namespace))?,
            Output::new(err, budget.share_of(namespace))?,
        ]))
    }

    /// The collected output. Errors: Exhausted when some of it was lost for lack of memory.
    fn take(self, code: i32, what: &str, budget: &Budget) -> Result<ExecOutput, Error> {
        let [out, err] = self.0;
        let lost = out.lost + err.lost;
        if lost > 0 {
            let kept = out.kept.len() + err.kept.len();
            let text = format!(
                "{what}: it ended with code {code}, and {lost} bytes of its output did not fit beside {kept} that did: \
                 all ExecSyncs of this node share {} bytes (exec.sync_output_bytes), and those of a namespace leave half for others",
                budget.total()
            );
            return Err(Error::new(Kind::Exhausted, text));
        }
        Ok(ExecOutput {
            stdout: out.kept,
            stderr: err.kept,
            code,
        })
    }

    /// Reads both streams until the program has ended, then what is still in the pipes: a process that the program left
    /// behind may hold them open for ever.
    async fn collect(&mut self, exec: &mut Exec) -> Result<i32, Error> {
        let [out, err] = &mut self.0;
        let ended = {
            let reading = async { tokio::join!(out.until_end(), err.until_end()) };
            tokio::pin!(reading);
            let mut open = true;
            loop {
                tokio::select! {
                    _ = &mut reading, if open => open = false,
                    ended = exec.ended() => break ended,
                }
            }
        };
        let exit = ended.map_err(|error| runtime_error("wait for an exec's end", error))?;
        out.rest();
        err.rest();
        Ok(exit.code)
    }
}

/// One stream of output.
struct Output {
    pipe: Receiver,
    kept: Vec<u8>,
    share: Share,
    /// Bytes lost for lack of memory. After the first loss nothing more is collected, because a gap would not be
    /// visible.
    lost: u64,
}

impl Output {
    fn new(pipe: OwnedFd, share: Share) -> Result<Self, Error> {
        let made = Receiver::from_owned_fd(pipe);
        Ok(Self {
            pipe: made.map_err(|error| io_error("read an exec's output", error))?,
            kept: Vec::new(),
            share,
            lost: 0,
        })
    }

    async fn until_end(&mut self) {
        loop {
            if self.pipe.readable().await.is_err() {
                return;
            }
            match self.read_some() {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    /// Reads once and collects as much as the budget allows.
    fn read_some(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let got = self.pipe.try_read(&mut chunk)?;
        self.keep(&chunk[..got]);
        Ok(got)
    }

    /// Reads what is in the pipe now: at most a pipe's capacity, because another process may go on writing.
    fn rest(&mut self) {
        let mut chunk = [0; 16 * 1024];
        let mut taken = 0;
        while taken < PIPE_BYTES {
            // Read directly: the reactor may not know of the last bytes yet.
            match rustix::io::read(&self.pipe, &mut chunk) {
                Ok(got) if got > 0 => {
                    self.keep(&chunk[..got]);
                    taken += got;
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES - self.kept.len();
        let bytes = &bytes[..bytes.len().min(room)];
        if self.lost > 0 || !self.share.covers(self.kept.len() + bytes.len()) {
            self.lost += bytes.len() as u64;
            return;
        }
        self.kept.extend_from_slice(bytes);
    }
}
