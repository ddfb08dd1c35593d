//! Instances of the component: what each is given, how many requests it answers, when it must be gone.
//!
//! Called by the published handler, which moves requests to instances. Invariants: an instance that is late is dropped
//! wherever its guest is, in computing as in waiting; whatever ends one is said in one line on standard error.
//! Not here: requests and their answers.

use std::future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Error, Store, StoreContextMut, Trap, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::lines::{Lines, Stream};
use super::request_id::RequestId;
use super::ticker::{Running, Ticker};
use crate::diagnosis::Diagnostics;
use crate::diagnosis::core_dump::CoreDumps;
use crate::end;
use crate::host::{ComponentState, Shared};
use crate::streams::{Output, Writer};
use coracle_spec::{ContainerSpec, HttpServer, WasmSpec};

/// Why a guest was ended that was under way when its container's grace period was over.
const STOPPED: &str = "its container was stopped, and the grace period is over";

/// Most linear memory of one instance; `None` is as much as there is. Bytes.
pub(super) fn memory_limit(spec: &ContainerSpec, server: &HttpServer) -> Option<u64> {
    let own = Some(server.limits.request_memory_bytes).filter(|bytes| *bytes != 0);
    match (own, spec.memory_limit_bytes) {
        (Some(own), Some(container)) => Some(own.min(container)),
        (own, container) => own.or(container),
    }
}

/// An instance that has had no request.
struct Fresh {
    store: Store<ComponentState>,
    proxy: Proxy,
    /// Its standard output and error.
    lines: [Lines; 2],
}

/// Everything that instances are made of.
pub(super) struct Instances {
    pre: ProxyPre<ComponentState>,
    spec: ContainerSpec,
    wasm: WasmSpec,
    server: HttpServer,
    shared: Shared,
    diagnostics: Arc<Diagnostics>,
    ticker: Ticker,
    /// One that has begun and waits for the first request; it computes nothing meanwhile.
    spare: Mutex<Option<Fresh>>,
    /// Guests that compute are to be ended.
    is_ending: Arc<AtomicBool>,
    /// Standard output and error of all of them.
    pub(super) out: Stream,
    pub(super) err: Stream,
}

impl Instances {
    /// Instances of `pre` for a container of `spec`, each of at most as much memory as [`memory_limit`] says.
    ///
    /// Errors: no thread can be made, or a directory that it is given cannot be opened.
    pub(super) fn new(
        pre: ProxyPre<ComponentState>,
        mut spec: ContainerSpec,
        wasm: WasmSpec,
        server: HttpServer,
        diagnostics: Arc<Diagnostics>,
    ) -> wasmtime::Result<Self> {
        let engine = match &pre {
            ProxyPre::P2(pre) => pre.engine().clone(),
            ProxyPre::P3(pre) => pre.engine().clone(),
        };
        spec.memory_limit_bytes = memory_limit(&spec, &server);
        Ok(Self {
            shared: Shared::new(&spec, &wasm, false)?,
            ticker: Ticker::start(engine)?,
            spare: Mutex::default(),
            is_ending: Arc::default(),
            out: Stream::new(Output::out(wasm.tty)),
            err: Stream::new(Output::err(wasm.tty)),
            pre,
            spec,
            wasm,
            server,
            diagnostics,
        })
    }

    fn store(&self, [out, err]: &[Lines; 2]) -> Store<ComponentState> {
        let engine = match &self.pre {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        };
        let streams = (Writer(out.clone()), Writer(err.clone()));
        let state = ComponentState::of_instance(&self.spec, &self.wasm, &self.shared, streams);
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.limits);
        // Each advance of the epoch lets others have their turn.
        store.set_epoch_deadline(1);
        let is_ending = Arc::clone(&self.is_ending);
        let profile = self.diagnostics.profile.clone();
        store.epoch_deadline_callback(move |store| {
            if is_ending.load(Ordering::Relaxed) {
                return Err(Error::from(Trap::Interrupt).context(STOPPED));
            }
            if let Some(profile) = &profile {
                profile.sample(&store);
            }
            Ok(UpdateDeadline::Yield(1))
        });
        store
    }

    /// The error of an instance that could not begin, with a sentence on its core dump.
    fn with_core_dump(&self, store: &mut Store<ComponentState>, e: Error) -> Error {
        let dumps = self.diagnostics.core_dumps.as_ref();
        match dumps.and_then(|dumps| dumps.write(store, &e)) {
            Some(said) => e.context(said),
            None => e,
        }
    }

    /// Makes the instance that answers the first request. Errors: the guest cannot begin.
    pub(super) async fn prepare(&self) -> wasmtime::Result<()> {
        let _running = self.ticker.run();
        let spare = self.begin().await?;
        *self.spare() = Some(spare);
        Ok(())
    }

    /// Makes an instance, while the ticker runs. Errors: the guest cannot begin, or takes longer than a request may.
    async fn begin(&self) -> wasmtime::Result<Fresh> {
        let lines = [self.out.of_instance(), self.err.of_instance()];
        let mut store = self.store(&lines);
        let deadline = self.deadline();
        let making = self.pre.instantiate_async(&mut store);
        let proxy = match tokio::time::timeout(deadline, making).await {
            Ok(made) => made.map_err(|e| self.with_core_dump(&mut store, e))?,
            Err(_) => wasmtime::bail!("the component took longer than {deadline:?} to begin"),
        };
        Ok(Fresh {
            store,
            proxy,
            lines,
        })
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.server.limits.deadline_s.into())
    }

    fn spare(&self) -> MutexGuard<'_, Option<Fresh>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every guest that computes, by a trap; new ones end as soon as they compute.
    pub(super) fn end_guests(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// Whether [`Instances::end_guests`] was called.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }
}

impl HandlerState for Instances {
    type StoreData = ComponentState;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(
        &self,
    ) -> wasmtime::Result<Instance<Self::StoreData, Self::WorkerExpiration, Self::WorkerState>>
    {
        let running = self.ticker.run();
        let spare = self.spare().take();
        let Fresh {
            store,
            proxy,
            lines,
        } = match spare {
            Some(spare) => spare,
            None => self.begin().await?,
        };
        Ok(Instance {
            store,
            proxy,
            view: ComponentState::http,
            expiration: Expiration {
                deadline: self.deadline(),
                idle: Duration::from_secs(self.server.limits.instance_idle_s.into()),
                timer: None,
            },
            state: Worker {
                max_requests: self.server.limits.max_instance_requests as usize,
                lines,
                is_ending: Arc::clone(&self.is_ending),
                core_dumps: self.diagnostics.core_dumps.clone(),
                _running: running,
            },
        })
    }
}

/// One instance, as the handler asks about it.
pub(super) struct Worker {
    max_requests: usize,
    /// Standard output and error of the instance.
    lines: [Lines; 2],
    is_ending: Arc<AtomicBool>,
    core_dumps: Option<Arc<CoreDumps>>,
    _running: Running,
}

/// What a request brings along.
pub(super) struct Turn {
    /// It is one of those at a time for as long as this lives.
    pub(super) permit: OwnedSemaphorePermit,
    /// Its id, where lines carry one.
    pub(super) id: Option<RequestId>,
}

impl WorkerState for Worker {
    type StoreData = ComponentState;
    type RequestData = Turn;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.max_requests {
            ShouldAccept::Never
        } else if concurrent > 0 {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    /// The request counts as one of those at a time until the guest is done with it; its end is the expiration's matter.
    fn on_request_start(
        &self,
        _: StoreContextMut<'_, ComponentState>,
        turn: Turn,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // An instance has one request at a time.
        if let Some(id) = &turn.id {
            self.lines.iter().for_each(|lines| lines.set_request(id));
        }
        Box::pin(async move {
            let _permit = turn.permit;
            future::pending::<()>().await;
        })
    }

    fn drop(&self, mut store: Store<ComponentState>, result: wasmtime::Result<()>) {
        let (lines, dumps) = (&self.lines[1], &self.core_dumps);
        match (result.map_err(|e| self.explained(e)), dumps.clone()) {
            (Ok(()), _) => {}
            (Err(e), None) => {
                drop(store);
                lines.line(&one_line(&e));
            }
            (Err(e), Some(dumps)) => {
                // Encoding and writing would hold up the requests of this thread.
                let lines = lines.clone();
                tokio::task::spawn_blocking(move || {
                    let said = dumps.write(&mut store, &e);
                    drop(store);
                    let said = said.map(|said| format!(" | {said}")).unwrap_or_default();
                    lines.line(&(one_line(&e) + &said));
                });
            }
        }
    }
}

impl Worker {
    /// An error, as it concerns the guest: one that waited is dropped with the server.
    fn explained(&self, e: Error) -> Error {
        match self.is_ending.load(Ordering::Relaxed) && !e.is::<Trap>() {
            true => Error::msg(STOPPED),
            false => e,
        }
    }
}

/// An error with its backtrace, in one line.
pub(super) fn one_line(error: &Error) -> String {
    let text = end::bounded(&end::described(error));
    let parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    format!("coracle: a request failed: {}", parts.join(" | "))
}

/// When an instance is late with a request, or has waited long enough for another.
pub(super) struct Expiration {
    deadline: Duration,
    idle: Duration,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl WorkerExpiration for Expiration {
    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        start: Instant,
    ) -> Poll<()> {
        let own = self.get_mut();
        let end = start
            + match status {
                WorkerStatus::Idle => own.idle,
                WorkerStatus::Requests | WorkerStatus::PostReturn => own.deadline,
            };
        if own.timer.as_ref().is_none_or(|(known, _)| *known != end) {
            own.timer = Some((end, Box::pin(tokio::time::sleep_until(end.into()))));
        }
        match &mut own.timer {
            Some((_, timer)) => timer.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}
