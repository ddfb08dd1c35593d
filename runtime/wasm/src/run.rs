//! Runs one guest until it exits, on a thread started after the fork, inside the finished jail.
//!
//! Called by a Wasm container's process. It loads the code, calls `ready` (which forbids new executable mappings and
//! reports), and calls the entry point.
//! Invariants: guest code runs only after the whole jail is built. A stop signal ends a guest that computes as well as
//! one that waits: it advances the epoch and wakes the event loop.
//! It must not know how the jail is built, what an end means (`super::end`) or where reports go.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::unix::AsyncFd;
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Store, UpdateDeadline};

use super::diagnosis::Diagnostics;
pub use super::end::{ERROR_CODE, End, Probes, TRAP_CODE, TRAP_TEXT_BYTES};
use super::end::{Refusals, judge};
use super::engine::{Extras, Warm};
use super::host::{ComponentState, ModuleState};
use super::p3::Program;
use super::server;
use super::server::ticker::{Running, Ticker};
use super::stop;
use super::toolbox;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, WasmKind, WasmSpec, Workload};

/// What a container process passes to [`run`].
pub struct Payload<'a> {
    /// Engine and linkers from before the fork.
    pub warm: &'a Warm,
    /// The container.
    pub spec: &'a ContainerSpec,
    /// Compiled code, from our own cache.
    pub code: OwnedFd,
    /// The host's procfs, through which a component is opened as this process's own descriptor: it has no path in the jail.
    pub procfs: OwnedFd,
    /// The socket of a server, from [`server::bind`]; nobody else has one.
    pub listener: Option<OwnedFd>,
}

enum Loaded {
    Module(Module),
    Component(Component),
}

/// How a payload begins.
pub struct Begin<R, S> {
    /// Called once everything that can fail before the guest's first instruction has succeeded.
    pub ready: R,
    /// Called when a server accepts connections from now on.
    pub serving: S,
    /// Who has been accepted for the server already.
    pub callers: Vec<TcpStream>,
    /// Another process has served before this one, so that the component is known to begin.
    pub is_again: bool,
}

/// Loads and runs the payload.
///
/// Errors: the code does not load, an import is missing, a preopen fails, or `ready` failed. The guest did not run.
pub fn run<R, S>(payload: Payload<'_>, stop: OwnedFd, begin: Begin<R, S>) -> Result<End>
where
    R: FnOnce() -> Result<()>,
    S: FnOnce(),
{
    let Workload::Wasm(wasm) = &payload.spec.workload else {
        return Err(Error::new(Kind::Bug, "a Linux payload came to the engine"));
    };
    if let Some(toolbox) = &wasm.toolbox {
        rustix::process::chdir(c"/").during(|| "enter the guest's root".into())?;
        drop((payload.procfs, payload.code));
        (begin.ready)()?;
        return Ok(End::Code(toolbox::run(payload.spec, wasm, toolbox)));
    }
    match wasm.serves() {
        Some(settings) => server::serve(payload, wasm, settings, stop, begin),
        None => run_program(payload, wasm, stop, begin.ready),
    }
}

/// Runs a guest that is no server.
fn run_program(
    payload: Payload<'_>,
    wasm: &WasmSpec,
    stop: OwnedFd,
    ready: impl FnOnce() -> Result<()>,
) -> Result<End> {
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .during(|| "start the guest's event loop".into())?;
    let diagnostics = Diagnostics::of(payload.spec, wasm)?;
    let extras = Extras::of(wasm);
    let own = extras.is_any().then(|| Warm::with(extras)).transpose()?;
    if let Some(own) = &own {
        stop::set_engine(&own.engine);
    }
    let warm = own.as_ref().unwrap_or(payload.warm);
    let loaded = load(&payload, warm, wasm.kind)?;
    rustix::process::chdir(c"/").during(|| "enter the guest's root".into())?;
    drop((payload.procfs, payload.code));
    let job = Job {
        warm,
        spec: payload.spec,
        wasm,
        diagnostics: &diagnostics,
    };
    let end = reactor.block_on(async {
        match loaded {
            Loaded::Module(module) => run_module(job, &module, stop, ready).await,
            Loaded::Component(component) => run_component(job, &component, stop, ready).await,
        }
    });
    diagnostics.finish();
    end
}

#[derive(Clone, Copy)]
struct Job<'a> {
    warm: &'a Warm,
    spec: &'a ContainerSpec,
    wasm: &'a WasmSpec,
    diagnostics: &'a Diagnostics,
}

fn load(payload: &Payload<'_>, warm: &Warm, kind: WasmKind) -> Result<Loaded> {
    match kind {
        WasmKind::Module => {
            let engine = &warm.engine;
            let file = payload
                .code
                .try_clone()
                .during(|| "share the compiled module".into())?;
            // SAFETY: the call executes what the file holds, so it must be ours and must not change while mapped. Ours:
            // the daemon opened it from its cache after checking the MAC that only the daemon can make. Unchanged:
            // cache entries are written once under a temporary name, mode 0444, and never opened for writing again.
            unsafe { Module::deserialize_open_file(engine, File::from(file)) }
                .map(Loaded::Module)
                .map_err(cannot_load)
        }
        WasmKind::Component => load_component(payload, &warm.engine).map(Loaded::Component),
    }
}

/// Maps the payload's component into `engine`.
pub(super) fn load_component(payload: &Payload<'_>, engine: &Engine) -> Result<Component> {
    rustix::process::fchdir(&payload.procfs).during(|| "reach the compiled component".into())?;
    let name = format!("self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&payload.code));
    // SAFETY: as for a module; the relative path is the magic link of our own descriptor, so it is that very file.
    unsafe { Component::deserialize_file(engine, name) }.map_err(cannot_load)
}

fn cannot_load(e: wasmtime::Error) -> Error {
    Error::new(Kind::StartFailed, format!("load compiled code: {e:#}"))
}

pub(super) fn cannot_start(e: wasmtime::Error) -> Error {
    Error::new(
        Kind::StartFailed,
        format!("instantiate: {}", super::inspect::text(&format!("{e:#}"))),
    )
}

async fn run_module(
    job: Job<'_>,
    module: &Module,
    stop: OwnedFd,
    ready: impl FnOnce() -> Result<()>,
) -> Result<End> {
    let pre = job
        .warm
        .modules
        .instantiate_pre(module)
        .map_err(cannot_start)?;
    let mut store = Store::new(
        &job.warm.engine,
        ModuleState::new(job.spec, job.wasm).map_err(cannot_start)?,
    );
    store.limiter(|state| &mut state.limits);
    let _ticking = arm(&mut store, job.diagnostics)?;
    ready()?;
    let entry = async {
        let instance = pre.instantiate_async(&mut store).await?;
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        start.call_async(&mut store, ()).await
    };
    let result = until_stopped(entry, stop.as_fd()).await;
    let refusals = Refusals {
        memory: store.data().limits.refused_beyond(),
        egress: None,
    };
    let dumped = dumped(job.diagnostics, &mut store, &result);
    Ok(judge(result, &refusals, dumped))
}

async fn run_component(
    job: Job<'_>,
    component: &Component,
    stop: OwnedFd,
    ready: impl FnOnce() -> Result<()>,
) -> Result<End> {
    let pre = job
        .warm
        .components
        .instantiate_pre(component)
        .map_err(cannot_start)?;
    let program = Program::new(pre, job.wasm.wasi_p3).map_err(cannot_start)?;
    let mut store = Store::new(
        &job.warm.engine,
        ComponentState::new(job.spec, job.wasm).map_err(cannot_start)?,
    );
    store.limiter(|state| &mut state.limits);
    let _ticking = arm(&mut store, job.diagnostics)?;
    ready()?;
    let result = until_stopped(program.run(&mut store), stop.as_fd()).await;
    let refusals = Refusals {
        memory: store.data().limits.refused_beyond(),
        egress: store.data().guard.refused(),
    };
    let dumped = dumped(job.diagnostics, &mut store, &result);
    Ok(judge(result, &refusals, dumped))
}

/// Has a stop signal end the guest of `store`, and its profile taken if there is to be one, for as long as what this gives
/// lives.
fn arm<T: 'static>(store: &mut Store<T>, diagnostics: &Diagnostics) -> Result<Option<Running>> {
    // One epoch ahead: without a profile only a stop signal advances the epoch, and the first advance traps.
    store.set_epoch_deadline(1);
    let Some(profile) = diagnostics.profile.clone() else {
        return Ok(None);
    };
    store.epoch_deadline_callback(move |store| {
        if stop::stopping() {
            return Ok(UpdateDeadline::Interrupt);
        }
        profile.sample(&store);
        Ok(UpdateDeadline::Continue(1))
    });
    let ticker = Ticker::start(store.engine().clone());
    let ticker = ticker.during(|| "start the thread of the guest's profile".into())?;
    Ok(Some(ticker.run()))
}

/// The sentence on the core dump of a guest that ended by `result`.
fn dumped<T: 'static>(
    diagnostics: &Diagnostics,
    store: &mut Store<T>,
    result: &Option<wasmtime::Result<()>>,
) -> Option<String> {
    match (&diagnostics.core_dumps, result) {
        (Some(dumps), Some(Err(error))) => dumps.write(store, error),
        _ => None,
    }
}

/// Runs `entry`; `None` if the stop signal came first.
async fn until_stopped(
    entry: impl Future<Output = wasmtime::Result<()>>,
    stop: BorrowedFd<'_>,
) -> Option<wasmtime::Result<()>> {
    // SAFETY: the borrow keeps the eventfd open, under the same number, for longer than the registration lives.
    let Ok(stop) = (unsafe { AsyncFd::register(stop) }) else {
        return Some(entry.await);
    };
    tokio::select! {
        biased;
        _ = stop.readable() => None,
        result = entry => Some(result),
    }
}
