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
use super::streams::{Input, Output};
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

/// What all instances of one component share: what they may reach, and what they have learnt of it.
pub(super) struct Shared {
    guard: Arc<Guard>,
    client: Client,
}

impl Shared {
    /// What instances of `wasm` share. Reads nothing yet.
    pub(super) fn new(wasm: &WasmSpec) -> Self {
        let guard = Arc::new(Guard::new(&wasm.network, wasm.resolver.clone()));
        let client = Client::new(Arc::clone(&guard));
        Self { guard, client }
    }
}

impl ComponentState {
    /// Store data for `spec`. Errors: a preopened directory cannot be opened.
    pub fn new(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<Self> {
        Ok(Self::with(spec, &Shared::new(wasm), context(spec, wasm)?))
    }

    /// Store data for one of many instances that run at the same time, with standard output and error of its own. A call
    /// that blocks holds up no other instance. Errors: as of [`ComponentState::new`].
    pub(super) fn of_instance<S: StdoutStream + 'static>(
        spec: &ContainerSpec,
        wasm: &WasmSpec,
        shared: &Shared,
        (out, err): (S, S),
    ) -> wasmtime::Result<Self> {
        let mut builder = context(spec, wasm)?;
        builder
            .allow_blocking_current_thread(false)
            .stdout(out)
            .stderr(err);
        Ok(Self::with(spec, shared, builder))
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
            limits: Limits::new(spec.memory_limit_bytes),
        }
    }
}

fn context(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<WasiCtxBuilder> {
    let mut builder = WasiCtxBuilder::new();
    builder
        .args(&wasm.args)
        .envs(&wasm.env)
        .initial_cwd(&wasm.working_dir);
    // What Go's and other standard libraries start in; a container that sets it knows better.
    if preopens::has_own_directory(wasm) && !wasm.env.iter().any(|(name, _)| name == "PWD") {
        builder.env("PWD", &wasm.working_dir);
    }
    builder.allow_blocking_current_thread(true);
    builder
        .secure_random(KernelRandom)
        .insecure_random(KernelRandom)
        .insecure_random_seed(seed());
    if wasm.stdin || wasm.tty {
        builder.stdin(Input { tty: wasm.tty });
    }
    builder
        .stdout(Output::out(wasm.tty))
        .stderr(Output::err(wasm.tty));
    preopens::add(&mut builder, spec, wasm)?;
    Ok(builder)
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
