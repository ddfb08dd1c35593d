//! WASI 0.3, for components of handlers that have it on: its interfaces in a linker, and programs of either version.
//!
//! Called by [`super::engine`] for the compiler and for containers whose spec says so, and by [`super::run`] and
//! [`super::server`]. Invariant: what a guest may look up, connect to and request is what [`super::network::Guard`] allows,
//! as for 0.2: sockets and requests ask it through the store data, names through [`super::lookup`].
//! wasmtime promises no security fixes for 0.3 between its releases, which is why none of it is in a linker otherwise.
//! Not here: who may have it.

use wasmtime::component::{InstancePre, Linker};
use wasmtime::{Result, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::handler::ProxyPre;

use super::host::ComponentState;
use super::{lookup, random, surroundings};

/// Adds WASI 0.3 and `wasi:http` 0.3 to `linker`. Errors: the engine refuses a definition.
pub(super) fn link(linker: &mut Linker<ComponentState>) -> Result<()> {
    p3::add_to_linker(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)?;
    lookup::link_p3(linker)?;
    random::link(linker, &random::P3)?;
    surroundings::link(linker, &surroundings::P3)
}

/// A program that runs once.
pub(super) enum Program {
    /// It exports `wasi:cli/run@0.2`.
    P2(p2::bindings::CommandPre<ComponentState>),
    /// It exports `wasi:cli/run@0.3`.
    P3(p3::bindings::CommandPre<ComponentState>),
}

impl Program {
    /// The program of `pre`: that for 0.2 if it has both. Errors: it exports none that is on.
    pub(super) fn new(pre: InstancePre<ComponentState>, is_p3_on: bool) -> Result<Self> {
        match p2::bindings::CommandPre::new(pre.clone()) {
            Err(_) if is_p3_on => p3::bindings::CommandPre::new(pre).map(Self::P3),
            own => own.map(Self::P2),
        }
    }

    /// Runs it in `store` to its end. Errors: a trap, or an exit without success.
    pub(super) async fn run(&self, store: &mut Store<ComponentState>) -> Result<()> {
        let result = match self {
            Self::P2(pre) => {
                let command = pre.instantiate_async(&mut *store).await?;
                command.wasi_cli_run().call_run(&mut *store).await?
            }
            Self::P3(pre) => {
                let command = pre.instantiate_async(&mut *store).await?;
                let run = async |accessor: &_| command.wasi_cli_run().call_run(accessor).await;
                store.run_concurrent(run).await??
            }
        };
        result.map_err(|()| I32Exit(1).into())
    }
}

/// What handles requests in `pre`: `wasi:http/incoming-handler@0.2` if it has both. Errors: it exports none that is on.
pub(super) fn handler(
    pre: InstancePre<ComponentState>,
    is_p3_on: bool,
) -> Result<ProxyPre<ComponentState>> {
    match wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre.clone()) {
        Err(_) if is_p3_on => {
            wasmtime_wasi_http::p3::bindings::ServicePre::new(pre).map(ProxyPre::P3)
        }
        own => own.map(ProxyPre::P2),
    }
}
