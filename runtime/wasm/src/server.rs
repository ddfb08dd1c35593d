//! The HTTP server in front of a component that exports `wasi:http/incoming-handler`, or `wasi:http/handler` of WASI 0.3.
//!
//! Called by [`super::run`] in a container whose spec has a server. The listening socket is bound by [`bind`] while the
//! process still may make sockets, and belongs to more than this process if the server may sleep; requests are answered by
//! instances of the component, a fresh one each unless the spec says otherwise, on as many threads as the CPU limit allows.
//!
//! | module | is |
//! |---|---|
//! | `admission` | what a head may be, who may wait for a turn |
//! | `connections` | accepting, HTTP/1.1 and HTTP/2, slow clients, draining |
//! | `doorman` | who is answered while the function sleeps, and who is kept for the guest |
//! | `idle` | when nothing happens any more |
//! | `answers` | what clients have taken of their answers, and those that take nothing |
//! | `uploads` | bodies that guests wait for, and clients that send nothing |
//! | `requests` | one request: its limits, its guest's answer, what becomes of failures |
//! | `instances` | stores and instances, how long each may live |
//! | `pool` | the engine whose memory for instances is reserved at the start |
//! | `lines` | whole lines on standard output and error |
//! | `request_id` | the name of a request in those lines |
//! | `ticker` | the epoch, advanced while guests run and at no other time |
//!
//! Invariants: nothing is answered before the component has been instantiated once; a failed or late request ends its
//! own instance and nothing else; a stop signal closes the listener, and what is under way goes on until it has its
//! answer or the process is killed.
//! Not here: which port and which limits, the jail, outgoing requests.

mod admission;
mod answers;
mod connections;
pub mod doorman;
mod idle;
mod instances;
mod lines;
mod pool;
mod request_id;
mod requests;
pub(super) mod ticker;
mod uploads;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi_http::handler::ProxyHandler;

use self::connections::Connections;
use self::instances::Instances;
use self::pool::Needs;
use super::diagnosis::Diagnostics;
use super::end::{self, End};
use super::engine::{self, Extras};
use super::host::ComponentState;
use super::p3;
use super::run::{self, Begin, Payload};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{HttpServer, WasmSpec};

/// Most threads for file operations beside those that run requests.
const BLOCKING_THREADS: usize = 16;
/// How long the event loop may take to end.
const LAST_LINES: Duration = Duration::from_millis(100);

/// Takes `port` at all addresses of the pod, of both families where the kernel has both; nobody can connect yet.
///
/// Errors: the port is taken, or, in the node's network, below the node's first unprivileged port.
pub fn bind(port: u16) -> Result<OwnedFd> {
    let bound = match bind_at(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(e) if is_without_ipv6(&e) => bind_at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        other => other,
    };
    bound.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::AddrInUse => {
                "; another container of the pod has it: choose one by http.coracle.dev/port or PORT"
            }
            io::ErrorKind::PermissionDenied => {
                "; in the node's network a guest cannot have a port below net.ipv4.ip_unprivileged_port_start"
            }
            _ => "",
        };
        Error::with(
            Kind::StartFailed,
            format!("listen at TCP port {port}{hint}"),
            e,
        )
    })
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn bind_at(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A container that starts again must not wait for the connections of the one before.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Serves until a stop signal has come and every request has its answer, or until the server is idle.
///
/// Errors: the code does not load or lacks its export, or `begin.ready` failed: no guest code ran.
pub(super) fn serve<R, S>(
    mut payload: Payload<'_>,
    wasm: &WasmSpec,
    server: &HttpServer,
    stop: OwnedFd,
    begin: Begin<R, S>,
) -> Result<End>
where
    R: FnOnce() -> Result<()>,
    S: FnOnce(),
{
    let Some(listener) = payload.listener.take() else {
        return Err(Error::new(Kind::Bug, "a server came without its listener"));
    };
    let reactor = reactor(server)?;
    let diagnostics = Arc::new(Diagnostics::of(payload.spec, wasm)?);
    let instances = instances_of(payload, wasm, server, Arc::clone(&diagnostics), &reactor)?;
    (begin.ready)()?;
    let end = reactor.block_on(async {
        // What cannot be instantiated says so now, and not in the answer to each request.
        if !begin.is_again
            && let Err(e) = instances.prepare().await
        {
            return Ok(End::Trapped(end::bounded(&end::described(&e))));
        }
        let handler = ProxyHandler::new(instances);
        Connections::new(handler, server.clone(), begin.is_again)
            .serve(listener, begin.callers, stop, begin.serving)
            .await
    });
    // What instances have begun to say goes out; a file operation that hangs is no reason to stay.
    reactor.shutdown_timeout(LAST_LINES);
    diagnostics.finish();
    end
}

/// A linker that a thread of the event loop makes.
type Linking = JoinHandle<Result<Linker<ComponentState>>>;

/// Loads the component and closes what that takes.
fn instances_of(
    payload: Payload<'_>,
    wasm: &WasmSpec,
    server: &HttpServer,
    diagnostics: Arc<Diagnostics>,
    reactor: &Runtime,
) -> Result<Instances> {
    let (spec, server) = (payload.spec.clone(), server.clone());
    let stage = Stage {
        payload: &payload,
        server: &server,
        memory: instances::memory_limit(&spec, &server),
        extras: Extras::of(wasm),
        reactor,
    };
    let (component, linking) = stage.load()?;
    rustix::process::chdir(c"/").during(|| "enter the guest's root".into())?;
    drop((payload.procfs, payload.code));
    let own = match linking {
        Some(linking) => Some(linker(linking, reactor)?),
        None => None,
    };
    let linker = own.as_ref().unwrap_or(&payload.warm.components);
    let pre = linker
        .instantiate_pre(&component)
        .and_then(|pre| p3::handler(pre, wasm.wasi_p3))
        .map_err(run::cannot_start)?;
    Instances::new(pre, spec, wasm.clone(), server, diagnostics).map_err(run::cannot_start)
}

fn linker(linking: Linking, reactor: &Runtime) -> Result<Linker<ComponentState>> {
    let made = reactor.block_on(linking);
    made.map_err(|e| Error::with(Kind::Bug, "make the server's linker", e))?
}

/// What loading a component takes.
struct Stage<'a> {
    payload: &'a Payload<'a>,
    server: &'a HttpServer,
    /// Bytes of an instance.
    memory: Option<u64>,
    extras: Extras,
    reactor: &'a Runtime,
}

impl Stage<'_> {
    /// The component in an engine with a pool of memory, and that engine's linker; without one in the engine that there
    /// is, where no pool can be had and there are no extras.
    fn load(&self) -> Result<(Component, Option<Linking>)> {
        // What a component needs is known once it is loaded, and nearly all need what is usual.
        if let Ok((component, linking)) = self.load_pooled(Needs::USUAL)
            && Needs::of(&component) == Needs::USUAL
        {
            return Ok((component, Some(linking)));
        }
        let component = run::load_component(self.payload, &self.payload.warm.engine)?;
        match self.load_pooled(Needs::of(&component)) {
            Ok((component, linking)) => Ok((component, Some(linking))),
            // Address space may be short, or one part of the component larger than a pool's slot.
            Err(_) if self.extras.is_any() => {
                let own = engine::running(self.extras, |_| {})?;
                self.load_into(&own)
                    .map(|(own, linking)| (own, Some(linking)))
            }
            Err(_) => Ok((component, None)),
        }
    }

    /// The component in an engine with a pool for `needs`.
    fn load_pooled(&self, needs: Needs) -> Result<(Component, Linking)> {
        let engine = pool::engine(needs, self.server, self.memory, self.extras)?;
        self.load_into(&engine)
    }

    /// The component in `engine`. Linking takes about as long as loading: both are done at a time.
    fn load_into(&self, engine: &Engine) -> Result<(Component, Linking)> {
        let linking = self.reactor.spawn({
            let (engine, wasi_p3) = (engine.clone(), self.extras.wasi_p3);
            async move { engine::component_linker(&engine, wasi_p3) }
        });
        Ok((run::load_component(self.payload, engine)?, linking))
    }
}

fn reactor(server: &HttpServer) -> Result<Runtime> {
    let mut builder = match server.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(usize::from(threads));
            builder
        }
    };
    builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .during(|| "start the server's event loop".into())
}
