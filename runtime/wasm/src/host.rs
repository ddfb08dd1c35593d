//! Builds the WASI context of a guest from its container's spec: arguments, environment, files, clocks, random, limits.
//!
//! Called by [`super::run`] inside the finished jail: `/` is the container's own root.
//! Invariants: nothing is inherited; every WASI capability is granted here by name; each call takes its random bytes
//! from getrandom(2), never from a generator that a fork could have copied.
//! It must not know why something is allowed: it follows the spec.

use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::http::Client;
use super::limits::Limits;
use super::network::Guard;
use super::preopens;
use super::random::{KernelRandom, seed};
use super::streams::{Input, Output, Writer};
use super::surroundings::{Surroundings, environment};
use coracle_spec::{ContainerSpec, WasmSpec};

/// Most bytes of one set of HTTP header fields, as the host keeps them.
const HTTP_FIELDS_BYTES: usize = 128 * 1024;

/// Store data of a core module.
pub struct ModuleState {
    /// WASI preview 1.
    pub wasi: WasiP1Ctx,
    /// Bounds of its memory.
    pub limits: Limits,
}

/// Store data of a component.
pub struct ComponentState {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    client: Client,
    table: ResourceTable,
    /// What it may do on the pod's network.
    pub(super) guard: Arc<Guard>,
    /// What it is given to start with.
    pub(super) surroundings: Arc<Surroundings>,
    /// Bounds of its memory.
    pub limits: Limits,
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.client,
        }
    }
}

impl ModuleState {
    /// Store data for `spec`. Errors: a preopened directory cannot be opened.
    pub fn new(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<Self> {
        Ok(Self {
            wasi: context(spec, wasm)?.build_p1(),
            limits: Limits::new(spec.memory_limit_bytes),
        })
    }

    /// Store data that grants nothing, for looking up imports in a linker.
    pub(super) fn unprivileged() -> Self {
        Self {
            wasi: WasiCtxBuilder::new().build_p1(),
            limits: Limits::new(None),
        }
    }
}

/// What all instances of one component share: what they are given, what they may reach, what they have learnt of it.
pub(super) struct Shared {
    guard: Arc<Guard>,
    client: Client,
    surroundings: Arc<Surroundings>,
}

impl Shared {
    /// What instances of `wasm` in a container of `spec` share; a call of theirs may hold up its thread if `may_block`.
    ///
    /// Errors: a directory cannot be opened, or the working directory is none.
    pub(super) fn new(
        spec: &ContainerSpec,
        wasm: &WasmSpec,
        may_block: bool,
    ) -> wasmtime::Result<Self> {
        let guard = Arc::new(Guard::new(&wasm.network, wasm.resolver.clone()));
        Ok(Self {
            client: Client::new(Arc::clone(&guard)),
            guard,
            surroundings: Arc::new(Surroundings::new(spec, wasm, may_block)?),
        })
    }
}

impl ComponentState {
    /// Store data for `spec`. Errors: a preopened directory cannot be opened.
    pub fn new(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<Self> {
        let mut builder = streams(wasm);
        builder.allow_blocking_current_thread(true);
        let shared = Shared::new(spec, wasm, true)?;
        Ok(Self::with(spec, &shared, builder))
    }

    /// Store data for one of many instances that run at the same time, with standard output and error of its own. A call
    /// that blocks holds up no other instance.
    pub(super) fn of_instance<S: StdoutStream + 'static>(
        spec: &ContainerSpec,
        wasm: &WasmSpec,
        shared: &Shared,
        (out, err): (S, S),
    ) -> Self {
        let mut builder = streams(wasm);
        builder
            .allow_blocking_current_thread(false)
            .stdout(out)
            .stderr(err);
        Self::with(spec, shared, builder)
    }

    fn with(spec: &ContainerSpec, shared: &Shared, mut builder: WasiCtxBuilder) -> Self {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HTTP_FIELDS_BYTES);
        allow_sockets(&mut builder, &shared.guard);
        Self {
            wasi: builder.build(),
            http,
            client: shared.client.clone(),
            table: ResourceTable::new(),
            guard: Arc::clone(&shared.guard),
            surroundings: Arc::clone(&shared.surroundings),
            limits: Limits::new(spec.memory_limit_bytes),
        }
    }
}

/// Everything of preview 1.
fn context(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<WasiCtxBuilder> {
    let mut builder = streams(wasm);
    builder
        .args(&wasm.args)
        .envs(&environment(wasm))
        .initial_cwd(&wasm.working_dir)
        .allow_blocking_current_thread(true)
        .insecure_random_seed(seed());
    preopens::add(&mut builder, spec, wasm)?;
    Ok(builder)
}

/// Standard streams and random bytes; [`super::surroundings`] and [`super::random`] link the rest for components.
fn streams(wasm: &WasmSpec) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder
        .secure_random(KernelRandom)
        .insecure_random(KernelRandom);
    if wasm.stdin || wasm.tty {
        builder.stdin(Input { tty: wasm.tty });
    }
    builder
        .stdout(Writer(Output::out(wasm.tty)))
        .stderr(Writer(Output::err(wasm.tty)));
    builder
}

/// Allows sockets; `guard` decides on each address. [`super::lookup`] links name lookups.
fn allow_sockets(builder: &mut WasiCtxBuilder, guard: &Arc<Guard>) {
    let is_on = guard.is_on();
    let guard = Arc::clone(guard);
    builder.allow_tcp(is_on).allow_udp(is_on);
    builder.socket_addr_check(move |address, purpose| {
        let permitted = guard.permits(address, purpose);
        Box::pin(async move { permitted })
    });
}
