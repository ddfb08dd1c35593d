//! Runs a program inside a running container: what ExecSync and streamed execs share.
//!
//! Called by: `Pods`. Calls: cgroups (a leaf for each exec), the compile cache, the pod's keeper.
//! Invariants: the program is confined by the container's own plan; when an exec is given up, whether by its deadline or
//! because nobody waits any more, everything it started dies, and nothing else.
//! Not here: whether the container runs (its driver), what becomes of the output ([`sync`], [`stream`]).

mod processes;
mod stream;
mod sync;

pub use sync::ExecOutput;

use std::os::fd::OwnedFd;
use std::time::Duration;

use coracle_images::Kind as ImageKind;
use coracle_runtime::cgroup::ExecLeaf;
use coracle_runtime::keeper::{ExecOrder, ExecStreams, StartPayload};
use coracle_runtime::process::Process;
use coracle_runtime::spec::{ContainerSpec, Tool, Toolbox, Workload};

use super::launch::Launch;
use super::plan::named_module;
use super::{Host, blocking, io_error, runtime_error};
use crate::lifecycle::{Error, Kind, Payload, WasmPlan};

/// How often, and how long apart, an exec that was given up is killed again: it may just be on its way into its cgroup.
const KILLS: (u32, Duration) = (50, Duration::from_millis(20));

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
        let tidy = move || match ended {
            true => leave_behind(&cgroup),
            false => end(&cgroup),
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(tidy)),
            Err(_) => tidy(),
        }
    }
}

/// What a program left running in the background stays with the container, and so does its cgroup.
fn leave_behind(cgroup: &ExecLeaf) {
    if cgroup.pids().is_ok_and(|pids| pids.is_empty())
        && let Err(error) = cgroup.remove()
    {
        tracing::debug!(cgroup = cgroup.path(), error = %error, "an exec's cgroup stays");
    }
}

/// Kills what is in the cgroup until it can be removed. Blocks.
fn end(cgroup: &ExecLeaf) {
    let (times, pause) = KILLS;
    let mut outcome = Ok(());
    for _ in 0..times {
        outcome = cgroup.kill().and_then(|()| cgroup.remove());
        if outcome.is_ok() {
            return;
        }
        std::thread::sleep(pause);
    }
    if let Err(error) = outcome {
        tracing::error!(cgroup = cgroup.path(), error = %error, "an exec was not killed");
    }
}

/// Which standard streams an exec has beside its output.
#[derive(Clone, Copy, Default)]
struct Stdio {
    stdin: bool,
    tty: bool,
}

impl Host {
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

    /// What the keeper is told of an exec.
    async fn exec_order(
        &self,
        launch: &Launch,
        argv: Vec<String>,
        leaf: &ExecLeaf,
        (stdio, streams): (Stdio, ExecStreams),
    ) -> Result<ExecOrder, Error> {
        let (spec, payload) = self.exec_payload(launch, argv, leaf, stdio).await?;
        let entrance = leaf.entrance().map_err(|error| {
            Error::because(Kind::Io, format!("open cgroup {}", leaf.path()), error)
        })?;
        Ok(ExecOrder {
            container: launch.id.clone(),
            spec,
            payload,
            cgroup: entrance,
            streams,
            kill: leaf.kill_files(),
        })
    }

    /// The container's own spec with other words; for Wasm with the code that they name.
    async fn exec_payload(
        &self,
        launch: &Launch,
        argv: Vec<String>,
        leaf: &ExecLeaf,
        stdio: Stdio,
    ) -> Result<(ContainerSpec, StartPayload), Error> {
        let mut spec = self.spec(launch)?;
        spec.cgroup_procs = leaf.task_files();
        let payload = match &launch.plan.payload {
            Payload::Linux(_) => self.payload(launch, &mut spec).await?,
            Payload::Wasm(own) => self.exec_code(launch, own, &argv[0], &mut spec).await?,
        };
        match &mut spec.workload {
            Workload::Wasm(wasm) => {
                (wasm.args, wasm.stdin, wasm.tty) = (argv, stdio.stdin, stdio.tty);
            }
            Workload::Linux(linux) => {
                (linux.args, linux.stdin, linux.jail.tty) = (argv, stdio.stdin, stdio.tty);
            }
        }
        Ok((spec, payload))
    }

    /// Compiled code of the module that `program` names in the container's image, else of the container's own module,
    /// unless the toolbox has a program of that name: then `spec` says so.
    async fn exec_code(
        &self,
        launch: &Launch,
        own: &WasmPlan,
        program: &str,
        spec: &mut ContainerSpec,
    ) -> Result<StartPayload, Error> {
        let image = self.parts.images.resolve(&launch.plan.image_id);
        let named = match image.as_ref().map(|image| (image, &image.kind)) {
            Some((image, ImageKind::Wasm(wasm))) => named_module(image, wasm, program).await?,
            _ => None,
        };
        let toolbox = match named {
            None if own.toolbox => self.toolbox(launch, program).await?,
            _ => None,
        };
        let (path, digest) = match &named {
            Some(module) => (&module.path, &module.digest),
            None => (&own.module, &own.module_digest),
        };
        let compiled = self.compiled(&launch.engine, path, digest).await?;
        if let Workload::Wasm(wasm) = &mut spec.workload {
            (wasm.kind, wasm.toolbox) = (compiled.info.kind, toolbox);
        }
        let code = compiled.open();
        code.map(StartPayload::Wasm)
            .map_err(|error| runtime_error("open compiled code", error))
    }

    /// The tool that `program` names, with what it cannot find out inside the jail.
    async fn toolbox(&self, launch: &Launch, program: &str) -> Result<Option<Toolbox>, Error> {
        let Some(mut toolbox) = Toolbox::named(program) else {
            return Ok(None);
        };
        if toolbox.tool == Tool::Ps {
            let path = &launch.plan.cgroup;
            let cgroup =
                self.parts.cgroups.open(path).map_err(|error| {
                    Error::because(Kind::Io, format!("open cgroup {path}"), error)
                })?;
            let own = launch.plan.args.join(" ");
            let rows = blocking("listing processes", move || {
                Ok(processes::rows(&cgroup, &own))
            });
            toolbox.processes = rows.await?;
        }
        Ok(Some(toolbox))
    }
}

/// A pipe: read end, write end.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let made = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    made.map_err(|error| io_error("make a pipe for an exec", error.into()))
}
