//! One plugin's connection: calls to it, its calls, its end.
//!
//! ```text
//! events --call--> writer ==socket==> plugin        reader ==socket== plugin --requests--> worker
//!           ^---------------- answers ----------------+
//! ```
//! Called by: [`super::listener`] (the life of a session), [`super::events`] (calls). Invariants: a call ends within its
//! limit; a plugin that takes longer, breaks the protocol or does not read is closed, and every call that waits for it ends;
//! one call at a time is made to a plugin, as plugins expect; its own requests wait in a short queue, and the next is
//! refused.
//! Must not know: what events mean.

mod incoming;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use coracle_proto::nri::v1 as nri;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};

use super::counters;
use super::event::Event;
use super::known::Known;
use super::wire::{self, MAX_MESSAGE, Message, PLUGIN, REQUEST, RESPONSE, RUNTIME};
use incoming::Incoming;

/// The service that plugins have.
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that we have.
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Requests of a plugin that wait.
const QUEUE: usize = 16;
/// gRPC codes.
const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;
const UNIMPLEMENTED: i32 = 12;

/// Why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub enum CallError {
    /// The plugin does not know the call.
    Unimplemented,
    /// The plugin answered an error.
    Answered(String),
    /// The session has ended, now or before.
    Closed,
    /// The request does not fit into a message. Bytes.
    TooLarge(usize),
}

/// A request of a plugin to change containers, and where the answer goes.
pub struct Request {
    /// The request.
    pub request: nri::UpdateContainersRequest,
    stream: u32,
}

/// What the reader of a session hands on.
pub struct Received {
    /// The plugin's registration: index and name.
    pub registered: oneshot::Receiver<(String, String)>,
    /// Its requests.
    pub requests: mpsc::Receiver<Request>,
}

#[derive(Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<nri::TtrpcResponse>>,
}

/// A connected plugin.
pub struct Session {
    name: OnceLock<String>,
    /// Its name in metrics.
    label: OnceLock<&'static str>,
    /// What it subscribed to.
    events: AtomicU32,
    /// Events that it knows as `StateChange` only.
    old_events: AtomicU32,
    calls: Mutex<Calls>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// Held while it works on a call.
    turn: tokio::sync::Mutex<()>,
    /// Calls that it has answered.
    answered: AtomicU64,
    /// What it has learnt of pods.
    pub known: Known,
    /// Ids of pods and containers whose creation waits for it.
    pub waiting: Mutex<HashSet<String>>,
    /// Why it was closed; empty while it is open.
    closed: watch::Sender<String>,
    limit: Duration,
}

impl Session {
    /// A session on `stream`, with its reader; `limit` is for each call. The reader runs until the session is closed.
    pub fn new(
        stream: UnixStream,
        limit: Duration,
    ) -> (
        std::sync::Arc<Session>,
        impl Future<Output = ()> + Send + 'static,
        Received,
    ) {
        let (read, write) = stream.into_split();
        let session = std::sync::Arc::new(Session {
            name: OnceLock::new(),
            label: OnceLock::new(),
            events: AtomicU32::new(0),
            old_events: AtomicU32::new(0),
            calls: Mutex::default(),
            writer: tokio::sync::Mutex::new(write),
            turn: tokio::sync::Mutex::new(()),
            answered: AtomicU64::new(0),
            known: Known::default(),
            waiting: Mutex::default(),
            closed: watch::channel(String::new()).0,
            limit,
        });
        let (register, registered) = oneshot::channel();
        let (queue, requests) = mpsc::channel(QUEUE);
        let own = std::sync::Arc::clone(&session);
        let reading = async move {
            let mut incoming = Incoming {
                session: &own,
                register: Some(register),
                queue,
            };
            let mut closed = own.closed.subscribe();
            let why = tokio::select! {
                why = incoming.read(read) => why,
                _ = closed.wait_for(|why| !why.is_empty()) => return,
            };
            own.close(why);
        };
        let received = Received {
            registered,
            requests,
        };
        (session, reading, received)
    }

    /// `NN-NAME`; empty before it has registered.
    pub fn name(&self) -> &str {
        self.name.get().map_or("", String::as_str)
    }

    /// Sets the name under which its requests are counted, once.
    pub fn count_as(&self, name: &str) {
        let _ = self.label.set(counters::label(name));
    }

    /// Sets name and subscription, once.
    pub fn subscribe(&self, name: String, events: u32) {
        let _ = self.name.set(name);
        self.events.store(events, Ordering::Release);
    }

    /// Whether it subscribed to the event and is open.
    pub fn wants(&self, event: Event) -> bool {
        self.events.load(Ordering::Acquire) & event.bit() != 0 && !self.is_closed()
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        !self.closed.borrow().is_empty()
    }

    /// Waits until it is closed; the reason.
    pub async fn ended(&self) -> String {
        let mut closed = self.closed.subscribe();
        let why = closed.wait_for(|why| !why.is_empty()).await;
        why.map(|why| why.clone()).unwrap_or_default()
    }

    /// Closes it: calls that wait end. The first reason counts.
    pub fn close(&self, why: String) {
        let is_first = self.closed.send_if_modified(|reason| {
            let is_first = reason.is_empty();
            if is_first {
                *reason = why;
            }
            is_first
        });
        if is_first {
            self.calls().waiting.clear();
        }
    }

    /// Waits until it works on no other call. A plugin that answers none within `limit` meanwhile is closed; one that does
    /// may have a long queue, which ends, as each call does. `None` if it is closed.
    pub async fn turn(&self, limit: Duration) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        // It keeps its place in the queue.
        let mut turn = std::pin::pin!(self.turn.lock());
        loop {
            let before = self.answered.load(Ordering::Acquire);
            if let Ok(turn) = tokio::time::timeout(limit, turn.as_mut()).await {
                return Some(turn).filter(|_| !self.is_closed());
            }
            if self.answered.load(Ordering::Acquire) == before {
                self.close(format!("a request waited for it longer than {limit:?}"));
                return None;
            }
        }
    }

    /// Sends an event, as a `StateChange` if it knows only that. Errors: as of [`Session::call`].
    pub async fn event(
        &self,
        event: Event,
        request: &impl prost::Message,
        subject: &nri::EventRequest,
    ) -> Result<Vec<u8>, CallError> {
        if self.old_events.load(Ordering::Acquire) & event.bit() == 0 {
            let answer = self.call(event.method(), request).await;
            if answer != Err(CallError::Unimplemented) || !event.was_state_change() {
                return answer;
            }
            self.old_events.fetch_or(event.bit(), Ordering::AcqRel);
        }
        let change = nri::StateChangeEvent {
            event: event as i32,
            pod: subject.pod.clone(),
            container: subject.container.clone(),
        };
        match self.call("StateChange", &change).await {
            // It knows neither: nothing to tell it.
            Err(CallError::Unimplemented) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Calls the plugin and waits for its answer, at most for the limit; then the session is closed.
    pub async fn call(
        &self,
        method: &'static str,
        request: &impl prost::Message,
    ) -> Result<Vec<u8>, CallError> {
        let began = Instant::now();
        let called = tokio::time::timeout(self.limit, self.exchange(method, request)).await;
        let result = match &called {
            Ok(Ok(_)) => "ok",
            Ok(Err(CallError::Unimplemented)) => "unimplemented",
            Ok(Err(_)) => "failed",
            Err(_) => "timeout",
        };
        let plugin = self.label.get().copied().unwrap_or_default();
        counters::called(plugin, method, result, began.elapsed());
        if called.is_ok() {
            self.answered.fetch_add(1, Ordering::AcqRel);
        }
        called.unwrap_or_else(|_| {
            self.close(format!(
                "it did not answer {method} within {:?}",
                self.limit
            ));
            Err(CallError::Closed)
        })
    }

    async fn exchange(
        &self,
        method: &str,
        request: &impl prost::Message,
    ) -> Result<Vec<u8>, CallError> {
        let request = nri::TtrpcRequest {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(self.limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let payload = request.encode_to_vec();
        if payload.len() > MAX_MESSAGE {
            return Err(CallError::TooLarge(payload.len()));
        }
        let (stream, answer) = {
            let mut calls = self.calls();
            let (sender, answer) = oneshot::channel();
            // 1, 3, 5 and so on. The plugin's side takes no id twice: the session ends long before they do.
            let stream = if calls.last == 0 {
                1
            } else {
                calls.last.saturating_add(2)
            };
            calls.last = stream;
            calls.waiting.insert(stream, sender);
            (stream, answer)
        };
        // Whoever closes it takes the waiting calls afterwards.
        if self.is_closed() {
            return Err(CallError::Closed);
        }
        self.write(Message {
            connection: PLUGIN,
            stream,
            kind: REQUEST,
            payload,
        })
        .await;
        let answer = answer.await.map_err(|_| CallError::Closed)?;
        match answer.status {
            Some(status) if status.code == UNIMPLEMENTED => Err(CallError::Unimplemented),
            Some(status) if status.code != 0 => Err(CallError::Answered(status.message)),
            _ => Ok(answer.payload),
        }
    }

    /// Answers a plugin's request with the updates that failed.
    pub async fn answer(&self, request: Request, failed: Vec<nri::ContainerUpdate>) {
        let answer = nri::UpdateContainersResponse { failed };
        self.reply(request.stream, Ok(answer.encode_to_vec())).await;
    }

    async fn reply(&self, stream: u32, answer: Result<Vec<u8>, (i32, String)>) {
        let response = match answer {
            Ok(payload) => nri::TtrpcResponse {
                status: None,
                payload,
            },
            Err((code, message)) => nri::TtrpcResponse {
                status: Some(nri::TtrpcStatus { code, message }),
                payload: Vec::new(),
            },
        };
        self.write(Message {
            connection: RUNTIME,
            stream,
            kind: RESPONSE,
            payload: response.encode_to_vec(),
        })
        .await;
    }

    /// Writes a message whole; a plugin that does not read it in time is closed.
    async fn write(&self, message: Message) {
        let bytes = wire::encode(&message);
        let writing = async {
            let mut writer = self.writer.lock().await;
            let mut closed = self.closed.subscribe();
            tokio::select! {
                written = writer.write_all(&bytes) => written.map_err(|error| format!("writing to it failed: {error}")),
                _ = closed.wait_for(|why| !why.is_empty()) => Ok(()),
            }
        };
        match tokio::time::timeout(self.limit, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.close(why),
            Err(_) => self.close(format!("it reads nothing for {:?}", self.limit)),
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "session/tests.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
