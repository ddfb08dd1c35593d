//! Builds the WASI context of a guest from its container's spec: arguments, environment, files, clocks, random, limits.
//!
//! Called by [`super::run`] inside the finished jail: `/` is the container's own root.
//! Invariants: nothing is inherited; every WASI capability is granted here by name; each call takes its random bytes
//! from getrandom(2), never from a generator that a fork could have copied.
//! It must not know why something is allowed: it follows the spec.

use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime::{StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::http::Client;
use super::network::Guard;
use super::random::{KernelRandom, seed};
use super::streams::{Input, Output};
use coracle_spec::{ContainerSpec, WasmSpec};

/// Most linear memories, tables and instances of one guest.
const MAX_ITEMS: usize = 64;
/// Most elements of one table. Source: "Limits" of the WebAssembly JavaScript interface, as in browsers.
const MAX_TABLE_ELEMENTS: usize = 10_000_000;
/// Most bytes that one call may pass from guest to host.
pub(super) const HOSTCALL_BYTES: usize = 8 * 1024 * 1024;
/// Most random bytes per call.
const RANDOM_BYTES: u64 = 1024 * 1024;
/// Most open handles of a component.
const MAX_HANDLES: usize = 16 * 1024;
/// Most bytes of one set of HTTP header fields, as the host keeps them.
const HTTP_FIELDS_BYTES: usize = 128 * 1024;

/// Store data of a core module.
pub struct ModuleState {
    /// WASI preview 1.
    pub wasi: WasiP1Ctx,
    /// Bounds of memories, tables, instances.
    pub limits: StoreLimits,
}

/// Store data of a component.
pub struct ComponentState {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    client: Client,
    table: ResourceTable,
    /// What it may do on the pod's network.
    pub(super) guard: Arc<Guard>,
    /// Bounds of memories, tables, instances.
    pub limits: StoreLimits,
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
            limits: limits(spec),
        })
    }

    /// Store data that grants nothing, for looking up imports in a linker.
    pub(super) fn unprivileged() -> Self {
        Self {
            wasi: WasiCtxBuilder::new().build_p1(),
            limits: StoreLimits::default(),
        }
    }
}

impl ComponentState {
    /// Store data for `spec`. Errors: a preopened directory cannot be opened.
    pub fn new(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<Self> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let guard = Arc::new(Guard::new(&wasm.network, wasm.resolver.clone()));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HTTP_FIELDS_BYTES);
        let mut builder = context(spec, wasm)?;
        allow_sockets(&mut builder, &guard);
        Ok(Self {
            wasi: builder.build(),
            http,
            client: Client::new(Arc::clone(&guard)),
            table,
            guard,
            limits: limits(spec),
        })
    }
}

fn limits(spec: &ContainerSpec) -> StoreLimits {
    let mut builder = StoreLimitsBuilder::new()
        .instances(MAX_ITEMS)
        .memories(MAX_ITEMS)
        .tables(MAX_ITEMS)
        .table_elements(MAX_TABLE_ELEMENTS);
    if let Some(bytes) = spec.memory_limit_bytes {
        builder = builder.memory_size(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    builder.build()
}

fn context(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<WasiCtxBuilder> {
    let mut builder = WasiCtxBuilder::new();
    builder
        .args(&wasm.args)
        .envs(&wasm.env)
        .initial_cwd(&wasm.working_dir);
    builder.allow_blocking_current_thread(true);
    builder
        .secure_random(KernelRandom)
        .insecure_random(KernelRandom)
        .insecure_random_seed(seed());
    builder.max_random_size(RANDOM_BYTES);
    if wasm.stdin || wasm.tty {
        builder.stdin(Input { tty: wasm.tty });
    }
    builder
        .stdout(Output::out(wasm.tty))
        .stderr(Output::err(wasm.tty));
    for (path, perms) in preopens(spec, wasm) {
        builder.preopened_dir(&path, &path, perms)?;
    }
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

/// `/` first, then each mounted directory: a guest's libc takes the longest match. A relative path is resolved against
/// the working directory.
fn preopens(spec: &ContainerSpec, _wasm: &WasmSpec) -> Vec<(String, FsPerms)> {
    let perms = |readonly| {
        if readonly {
            FsPerms::ReadOnly
        } else {
            FsPerms::ReadWrite
        }
    };
    let is_dir = |path: &str| std::fs::metadata(path).is_ok_and(|m| m.is_dir());
    // A writable file mounted into a read-only root is opened through `/`; the kernel keeps the rest read-only.
    let writable_file = spec
        .mounts
        .iter()
        .any(|m| !m.readonly && !is_dir(&m.target));
    let mut found = vec![("/".to_owned(), perms(spec.root.readonly && !writable_file))];
    found.extend(
        spec.mounts
            .iter()
            .filter(|m| is_dir(&m.target))
            .map(|m| (m.target.clone(), perms(m.readonly))),
    );
    found
}
