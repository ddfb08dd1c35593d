//! Runs a program inside a running container: the common part of ExecSync and streamed execs.
//!
//! Called by: `Pods`. Calls: cgroups (a leaf for each exec), the compile cache, the pod's keeper.
//! Invariants: the container's own plan confines the program; when an exec reaches its deadline or is cancelled,
//! everything that it started is killed, and nothing else.
//! Must not know: whether the container runs (its driver knows), what happens to the output ([`sync`], [`stream`]).

mod leaf;
mod processes;
mod program;
mod shell;
mod stream;
mod sync;

pub(super) use leaf::OrphanedLeaves;
pub(super) use sync::FREE_BYTES;

use std::os::fd::OwnedFd;

use coracle_cgroup::ExecLeaf;
use coracle_control::keeper::{ExecOptions, ExecStreams, StartPayload};
use coracle_lifecycle::{Error, Kind, Payload, StartRequest, WasmPlan};
use coracle_spec::{ContainerSpec, Tool, Toolbox, Workload};

use self::program::Program;
use super::start::open_code;
use super::{Host, blocking, io_error};

/// The standard streams of an exec other than output.
#[derive(Clone, Copy, Default)]
struct Stdio {
    stdin: bool,
    tty: bool,
}

impl Host {
    /// The keeper's request for an exec.
    async fn exec_options(
        &self,
        request: &StartRequest,
        argv: Vec<String>,
        leaf: &ExecLeaf,
        (stdio, streams): (Stdio, ExecStreams),
    ) -> Result<ExecOptions, Error> {
        let (spec, payload) = self.exec_payload(request, argv, leaf, stdio).await?;
        let entrance = leaf.clone_into_fd().map_err(|error| {
            Error::because(Kind::Io, format!("open cgroup {}", leaf.path()), error)
        })?;
        Ok(ExecOptions {
            container: request.id.clone(),
            spec,
            payload,
            cgroup: entrance,
            streams,
            kill: leaf.kill_files(),
            kill_list: leaf.kill_list(),
        })
    }

    /// The container's own spec with other arguments; for Wasm with the code of the program.
    async fn exec_payload(
        &self,
        request: &StartRequest,
        mut argv: Vec<String>,
        leaf: &ExecLeaf,
        stdio: Stdio,
    ) -> Result<(ContainerSpec, StartPayload), Error> {
        let mut spec = self.spec(request)?;
        spec.cgroup_procs = leaf.task_files();
        let payload = match &request.plan.payload {
            Payload::Linux(_) => self.payload(request, &mut spec).await?,
            Payload::Wasm(own) => self.exec_code(request, own, &mut argv, &mut spec).await?,
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

    /// Compiled code of what `argv` names; of the container's own module, which is not run, beside a tool: then `spec`
    /// says so. `argv` becomes what the program is told.
    async fn exec_code(
        &self,
        request: &StartRequest,
        own: &WasmPlan,
        argv: &mut Vec<String>,
        spec: &mut ContainerSpec,
    ) -> Result<StartPayload, Error> {
        let (mut toolbox, mut other) = (None, None);
        match self.program(request, own, argv).await? {
            Program::Own => {}
            Program::Tool(tool) => toolbox = Some(tool),
            Program::Module(module, image) => {
                self.modules.add(&module.digest, &image);
                other = Some(module);
            }
        }
        let (path, digest) = match &other {
            Some(module) => (&module.path, &module.digest),
            None => (&own.module, &own.module_digest),
        };
        let module = (path.as_path(), digest.as_str());
        let compiled = self.compiled_for(request, module).await?;
        if let Workload::Wasm(wasm) = &mut spec.workload {
            (wasm.kind, wasm.toolbox) = (compiled.info.kind, toolbox);
            // Its port is the container's own.
            wasm.server = None;
        }
        open_code(compiled).await
    }

    /// The tool that `program` names, with the facts that it cannot find out inside the jail.
    async fn toolbox(
        &self,
        request: &StartRequest,
        program: &str,
    ) -> Result<Option<Toolbox>, Error> {
        let Some(mut toolbox) = Toolbox::named(program) else {
            return Ok(None);
        };
        if toolbox.tool == Tool::Ps {
            let path = &request.plan.cgroup;
            let cgroup =
                self.parts.cgroups.open(path).map_err(|error| {
                    Error::because(Kind::Io, format!("open cgroup {path}"), error)
                })?;
            let own = request.plan.args.join(" ");
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
