//! ExecSync: an exec whose output is collected.
//!
//! Invariant: output beyond [`OUTPUT_BYTES`] a stream is taken and dropped, so that it never blocks the program and never
//! fills this daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::keeper::{Exec, ExecStreams};
use tokio::net::unix::pipe::Receiver;

use super::leaf::Leaf;
use super::{Stdio, pipe};
use crate::host::launch::Launch;
use crate::host::{Host, blocking, io_error, runtime_error};
use crate::lifecycle::{Error, Kind};

/// Most bytes kept of each output stream. Source: kubelet and CRI-O agree on 16 MiB.
pub const OUTPUT_BYTES: usize = 16 << 20;
/// Most that a pipe can hold. Source: pipe(7), `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES: usize = 1 << 20;
/// How long a killed exec may take to be gone.
const KILLED: Duration = Duration::from_secs(3);

/// What an exec came to.
#[derive(Debug)]
pub struct ExecOutput {
    /// Its first [`OUTPUT_BYTES`] of standard output.
    pub stdout: Vec<u8>,
    /// The same of standard error.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal for a signal.
    pub code: i32,
}

impl Host {
    /// Runs `argv` in the container of `launch`, which runs. `limit` of `None` waits for ever.
    ///
    /// Errors: StartFailed when the program cannot be executed; Deadline when it was killed for not ending in time;
    /// WrongPhase when the container has ended meanwhile.
    pub async fn exec_sync(
        self: &Arc<Self>,
        launch: &Launch,
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
        let order = self.exec_order(launch, argv, &leaf.cgroup, with).await?;
        let what = || format!("exec in container {}", launch.id);
        let mut streams = Streams::new(out, err)?;
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
                let (stdout, stderr) = streams.take();
                Ok(ExecOutput {
                    stdout,
                    stderr,
                    code,
                })
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
struct Streams {
    pipes: [Receiver; 2],
    kept: [Vec<u8>; 2],
}

impl Streams {
    fn new(out: OwnedFd, err: OwnedFd) -> Result<Self, Error> {
        let receiver = |fd| {
            let made = Receiver::from_owned_fd(fd);
            made.map_err(|error| io_error("read an exec's output", error))
        };
        Ok(Self {
            pipes: [receiver(out)?, receiver(err)?],
            kept: [Vec::new(), Vec::new()],
        })
    }

    fn take(self) -> (Vec<u8>, Vec<u8>) {
        let [out, err] = self.kept;
        (out, err)
    }

    /// Reads both streams until the program has ended, then what is still in the pipes: somebody whom the program left
    /// behind may hold them open for ever.
    async fn collect(&mut self, exec: &mut Exec) -> Result<i32, Error> {
        let [out, err] = &mut self.pipes;
        let [out_kept, err_kept] = &mut self.kept;
        let ended = {
            let reading =
                async { tokio::join!(until_end(out, out_kept), until_end(err, err_kept)) };
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
        rest(out, out_kept);
        rest(err, err_kept);
        Ok(exit.code)
    }
}

async fn until_end(pipe: &Receiver, kept: &mut Vec<u8>) {
    loop {
        if pipe.readable().await.is_err() {
            return;
        }
        match read_some(pipe, kept) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Takes what is in the pipe now: at most what a pipe can hold, should somebody go on writing.
fn rest(pipe: &Receiver, kept: &mut Vec<u8>) {
    let mut chunk = [0; 16 * 1024];
    let mut taken = 0;
    while taken < PIPE_BYTES {
        // Asked of the kernel: the reactor may not have heard of the last bytes.
        match rustix::io::read(pipe, &mut chunk) {
            Ok(got) if got > 0 => {
                keep(kept, &chunk[..got]);
                taken += got;
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_BYTES - kept.len();
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// Reads once and keeps what there is room for.
fn read_some(pipe: &Receiver, kept: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let got = pipe.try_read(&mut chunk)?;
    keep(kept, &chunk[..got]);
    Ok(got)
}
