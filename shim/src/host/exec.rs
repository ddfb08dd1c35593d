//! Runs a program inside a running container and collects what it prints: ExecSync.
//!
//! Called by: `cri/exec`. Calls: cgroups (a leaf for each exec), the compile cache, the pod's keeper.
//! Invariants: the program is confined by the container's own plan; output beyond [`OUTPUT_BYTES`] a stream is taken and
//! dropped, so that it never blocks the program and never fills this daemon; when an exec is given up, whether by its
//! deadline or because nobody waits any more, everything it started dies, and nothing else.
//! Not here: whether the container runs (its driver), streaming.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_images::{Image, Kind as ImageKind};
use coracle_runtime::cgroup::ExecLeaf;
use coracle_runtime::keeper::{Exec, ExecOrder, StartPayload};
use coracle_runtime::process::Process;
use coracle_runtime::spec::{ContainerSpec, Workload};
use tokio::net::unix::pipe::Receiver;

use super::launch::Launch;
use super::plan::find_module;
use super::{Host, blocking, io_error, runtime_error};
use crate::lifecycle::{Error, Kind, Payload, WasmPlan};

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

/// The cgroup of one exec; what is in it is killed when this is dropped before the exec has ended.
struct Leaf {
    cgroup: ExecLeaf,
    /// Its first process, once there is one.
    process: Option<Process>,
    ended: bool,
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let (cgroup, ended) = (self.cgroup.clone(), self.ended);
        if let Some(process) = self.process.take().filter(|_| !ended) {
            // In a cgroup that is not its own nobody else would kill it.
            let _ = process.signal(libc::SIGKILL);
        }
        // What a program left running in the background stays with the container, and so does its cgroup.
        let tidy = move || {
            if !ended && let Err(error) = cgroup.kill() {
                tracing::error!(cgroup = cgroup.path(), error = %error, "an exec was not killed");
            }
            if cgroup.pids().is_ok_and(|pids| pids.is_empty())
                && let Err(error) = cgroup.remove()
            {
                tracing::debug!(cgroup = cgroup.path(), error = %error, "an exec's cgroup stays");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(tidy)),
            Err(_) => tidy(),
        }
    }
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
        let (spec, payload) = self.exec_payload(launch, argv, &leaf.cgroup).await?;
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let order = ExecOrder {
            container: launch.id.clone(),
            spec,
            payload,
            cgroup: leaf.cgroup.entrance().map_err(|error| {
                Error::because(
                    Kind::Io,
                    format!("open cgroup {}", leaf.cgroup.path()),
                    error,
                )
            })?,
            stdin: None,
            stdout,
            stderr,
            kill: leaf.cgroup.kill_files(),
        };
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

    async fn exec_leaf(&self, launch: &Launch) -> Result<Leaf, Error> {
        let path = &launch.plan.cgroup;
        let failed =
            |error| Error::because(Kind::Io, format!("make an exec's cgroup in {path}"), error);
        let container = self.parts.cgroups.open(path).map_err(failed)?;
        let name = coracle_runtime::id::ContainerId::random()
            .map_err(|error| io_error("draw an exec's name", error))?;
        let made = blocking("making an exec's cgroup", move || {
            container
                .exec_leaf(name.short())
                .map_err(|error| Error::because(Kind::Io, "make an exec's cgroup", error))
        });
        Ok(Leaf {
            cgroup: made.await?,
            process: None,
            ended: false,
        })
    }

    /// The container's own spec with other words; for Wasm with the code that they name.
    async fn exec_payload(
        &self,
        launch: &Launch,
        argv: Vec<String>,
        leaf: &ExecLeaf,
    ) -> Result<(ContainerSpec, StartPayload), Error> {
        let mut spec = self.spec(launch)?;
        spec.cgroup_procs = leaf.task_files();
        let payload = match &launch.plan.payload {
            Payload::Linux(_) => self.payload(launch, &mut spec).await?,
            Payload::Wasm(own) => self.exec_code(launch, own, &argv[0], &mut spec).await?,
        };
        match &mut spec.workload {
            Workload::Wasm(wasm) => {
                (wasm.args, wasm.stdin) = (argv, false);
            }
            Workload::Linux(linux) => {
                (linux.args, linux.stdin, linux.jail.tty) = (argv, false, false);
            }
        }
        Ok((spec, payload))
    }

    /// Compiled code of the module that `program` names in the container's image, else of the container's own module.
    async fn exec_code(
        &self,
        launch: &Launch,
        own: &WasmPlan,
        program: &str,
        spec: &mut ContainerSpec,
    ) -> Result<StartPayload, Error> {
        let (mut path, mut digest) = (own.module.clone(), own.module_digest.clone());
        if let Some(image) = self.parts.images.resolve(&launch.plan.image_id)
            && let Some(found) = named_module(&image, program).await?
        {
            (path, digest) = (found.path, found.digest);
        }
        let compiled = self.compiled(&launch.engine, &path, &digest).await?;
        if let Workload::Wasm(wasm) = &mut spec.workload {
            wasm.kind = compiled.info.kind;
        }
        let code = compiled.open();
        code.map(StartPayload::Wasm)
            .map_err(|error| runtime_error("open compiled code", error))
    }
}

async fn named_module(
    image: &Arc<Image>,
    program: &str,
) -> Result<Option<super::plan::Module>, Error> {
    match &image.kind {
        ImageKind::Wasm(wasm) => find_module(image, wasm, program).await.map(Some),
        ImageKind::Linux(_) => Ok(None),
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

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let made = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    made.map_err(|error| io_error("make a pipe for an exec", error.into()))
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
