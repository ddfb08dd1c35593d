//! ExecSync: an exec whose output is collected.
//!
//! Invariant: output beyond [`OUTPUT_BYTES`] a stream is taken and dropped, so that it never blocks the program and never
//! fills this daemon; all calls together stay within one [`Budget`], and a call that cannot have more says so.
//! Not here: how the program comes to run.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_lifecycle::{Error, ExecOutput, Kind, StartRequest};
use coracle_runtime::keeper::{Exec, ExecStreams};
use tokio::net::unix::pipe::Receiver;

use super::budget::{Budget, Share};
use super::leaf::Leaf;
use super::{Stdio, pipe};
use crate::host::{Host, blocking, io_error, runtime_error};

/// Most bytes kept of each output stream. Source: kubelet and CRI-O agree on 16 MiB.
pub const OUTPUT_BYTES: usize = 16 << 20;
/// Most that a pipe can hold. Source: pipe(7), `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES: usize = 1 << 20;
/// How long a killed exec may take to be gone.
const KILLED: Duration = Duration::from_secs(3);

impl Host {
    /// Runs `argv` in the container of `launch`, which runs. `limit` of `None` waits for ever.
    ///
    /// Errors: StartFailed when the program cannot be executed; Deadline when it was killed for not ending in time;
    /// WrongPhase when the container has ended meanwhile; Exhausted when the node had no room for its output.
    pub async fn exec_sync(
        self: &Arc<Self>,
        launch: &StartRequest,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let mut leaf = self.exec_leaf(launch).await?;
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let given = ExecStreams::Given {
            stdin: None,
            stdout,
            stderr,
        };
        let with = (Stdio::default(), given);
        let order = self.exec_options(launch, argv, &leaf.cgroup, with).await?;
        let what = || format!("exec in container {}", launch.id);
        let mut streams = Streams::new(out, err, &self.exec_budget)?;
        let run = async {
            let started = launch.keeper.exec(order, &self.parts.filters).await;
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

/// Kills an exec that is out of time and waits until it is gone.
async fn give_up(leaf: &Leaf, limit: Option<Duration>, what: String) -> Error {
    let cgroup = leaf.cgroup.clone();
    let killed = blocking("killing an exec", move || {
        cgroup
            .kill()
            .map_err(|error| Error::because(Kind::Io, "kill an exec", error))
    })
    .await;
    if let Some(process) = &leaf.process {
        // In a cgroup that is not its own nobody was killed.
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

/// The read ends of an exec's output, and what came out of them.
struct Streams([Output; 2]);

impl Streams {
    fn new(out: OwnedFd, err: OwnedFd, budget: &Budget) -> Result<Self, Error> {
        Ok(Self([Output::new(out, budget)?, Output::new(err, budget)?]))
    }

    /// What was kept. Errors: Exhausted when the node had no room for some of it.
    fn take(self, code: i32, what: &str, budget: &Budget) -> Result<ExecOutput, Error> {
        let [out, err] = self.0;
        let lost = out.lost + err.lost;
        if lost > 0 {
            let kept = out.kept.len() + err.kept.len();
            let text = format!(
                "{what}: it ended with code {code}, and {lost} bytes of its output did not fit beside {kept} that did: \
                 all ExecSyncs of this node share {} bytes (exec.sync_output_bytes)",
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

    /// Reads both streams until the program has ended, then what is still in the pipes: somebody whom the program left
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
    /// Bytes for which the node had no room. Once some are lost nothing more is kept: a gap would not be seen.
    lost: u64,
}

impl Output {
    fn new(pipe: OwnedFd, budget: &Budget) -> Result<Self, Error> {
        let made = Receiver::from_owned_fd(pipe);
        Ok(Self {
            pipe: made.map_err(|error| io_error("read an exec's output", error))?,
            kept: Vec::new(),
            share: budget.share(),
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

    /// Reads once and keeps what there is room for.
    fn read_some(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let got = self.pipe.try_read(&mut chunk)?;
        self.keep(&chunk[..got]);
        Ok(got)
    }

    /// Takes what is in the pipe now: at most what a pipe can hold, should somebody go on writing.
    fn rest(&mut self) {
        let mut chunk = [0; 16 * 1024];
        let mut taken = 0;
        while taken < PIPE_BYTES {
            // Asked of the kernel: the reactor may not have heard of the last bytes.
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
