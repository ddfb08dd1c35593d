//! `wasi:sockets/ip-name-lookup`, implemented with our own resolver instead of libc's.
//!
//! `engine` links it over wasmtime-wasi's functions of the same names. Invariant: a lookup runs on the guest's own
//! event loop, so that a guest that waits for it can still be stopped.
//! The rest of `wasi:sockets` is wasmtime-wasi's.

use std::net::IpAddr;
use std::vec;

use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets as p3;

use super::host::ComponentState;
use super::network::Failure;

/// The interface; the linker offers it to importers of every 0.2 version.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// A lookup that a guest holds: in progress, or the addresses that the guest has not read yet.
enum Lookup {
    Pending(JoinHandle<Result<Vec<IpAddr>, Failure>>),
    Answered(Result<vec::IntoIter<IpAddr>, Failure>),
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Self::Pending(task) = self {
            task.abort();
        }
    }
}

impl Lookup {
    async fn finish(&mut self) {
        if let Self::Pending(task) = self {
            let answer = task.await.unwrap_or(Err(Failure::Unanswered));
            *self = Self::Answered(answer.map(Vec::into_iter));
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self, Self::Pending(task) if !task.is_finished())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        self.finish().await;
    }
}

/// Errors of a lookup as those of one WASI version, whose bindings are types of their own.
macro_rules! from_failure {
    ($code:ty) => {
        impl From<Failure> for $code {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::Invalid => Self::InvalidArgument,
                    Failure::Denied => Self::AccessDenied,
                    Failure::Absent => Self::NameUnresolvable,
                    Failure::Unanswered => Self::TemporaryResolverFailure,
                }
            }
        }
    };
}
from_failure!(ErrorCode);
from_failure!(p3::ip_name_lookup::ErrorCode);

/// Replaces the lookups that `linker` has by ours. Errors: the engine refuses a definition.
pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<Lookup>(),
        |mut store, handle| {
            let lookup = Resource::<Lookup>::new_own(handle);
            store.data_mut().ctx().table.delete(lookup)?;
            Ok(())
        },
    )?;
    interface.func_wrap("resolve-addresses", start)?;
    interface.func_wrap_async(
        "[method]resolve-address-stream.resolve-next-address",
        |store, (own,): (Resource<Lookup>,)| Box::new(next(store, own)),
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, ComponentState>, (own,): (Resource<Lookup>,)| {
            let pollable: Resource<DynPollable> = subscribe(store.data_mut().ctx().table, own)?;
            Ok((pollable,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The interface of WASI 0.3, which has one function.
const INTERFACE_P3: &str = "wasi:sockets/ip-name-lookup@0.3.0";

/// Replaces the lookups of WASI 0.3 that `linker` has by ours. Errors: the engine refuses a definition.
pub(super) fn link_p3(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE_P3)?;
    interface.func_wrap_concurrent(
        "resolve-addresses",
        |store: &Accessor<ComponentState>, (name,): (String,)| Box::pin(resolve(store, name)),
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

type Resolved = Result<Vec<p3::types::IpAddress>, p3::ip_name_lookup::ErrorCode>;

async fn resolve(store: &Accessor<ComponentState>, name: String) -> wasmtime::Result<(Resolved,)> {
    let guard = store.with(|mut view| std::sync::Arc::clone(&view.data_mut().guard));
    // It has the literal forms and the policy of 0.2.
    let found = guard.resolve(&name).await;
    let answer = found.map(|all| all.into_iter().map(Into::into).collect());
    Ok((answer.map_err(Into::into),))
}

type Started = Result<Resource<Lookup>, ErrorCode>;

fn start(
    mut store: StoreContextMut<'_, ComponentState>,
    (network, name): (Resource<Network>, String),
) -> wasmtime::Result<(Started,)> {
    let state = store.data_mut();
    // The handle is the permission to look names up; it carries nothing else.
    state.ctx().table.get(&network)?;
    if !state.guard.is_on() {
        return Ok((Err(ErrorCode::AccessDenied),));
    }
    let guard = std::sync::Arc::clone(&state.guard);
    let task = tokio::spawn(async move { guard.resolve(&name).await });
    let lookup = state.ctx().table.push(Lookup::Pending(task))?;
    Ok((Ok(lookup),))
}

type Next = Result<Option<IpAddress>, ErrorCode>;

async fn next(
    mut store: StoreContextMut<'_, ComponentState>,
    own: Resource<Lookup>,
) -> wasmtime::Result<(Next,)> {
    let view = store.data_mut().ctx();
    let lookup = view.table.get_mut(&own)?;
    if lookup.is_pending() {
        return Ok((Err(ErrorCode::WouldBlock),));
    }
    // It has finished, so this does not wait.
    lookup.finish().await;
    let answer = match lookup {
        Lookup::Answered(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
        Lookup::Answered(Err(failure)) => Err(ErrorCode::from(*failure)),
        Lookup::Pending(_) => Err(ErrorCode::WouldBlock),
    };
    Ok((answer,))
}
