//! Connections to servers that are kept after a request for the next one to the same authority.
//!
//! Called by [`super::send`]. A connection of HTTP/1.1 is in the pool while nothing is under way on it; one of HTTP/2 from
//! its beginning on, for all requests at a time. Invariants: a connection serves the scheme, host and port that it was made
//! for and no other; at most [`MAX_KEPT`] are kept, each for at most [`MAX_IDLE`] without a request; without kept
//! connections nothing wakes.
//! Not here: making connections, and whether they are allowed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, Uri, header::HOST};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use wasmtime_wasi_http::{Error, Result, WasiBody};

use super::{Endpoint, only_path};

/// Most connections that are kept; the one that was used longest ago makes room.
const MAX_KEPT: usize = 64;
/// How long one is kept without a request: shorter than servers wait, most of which take a minute.
const MAX_IDLE: Duration = Duration::from_secs(20);

/// The connections that are kept for all guests of a process.
#[derive(Default)]
pub(super) struct Pool(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    all: Vec<Entry>,
    /// The number of the next entry.
    next: u64,
}

struct Entry {
    number: u64,
    endpoint: Endpoint,
    sender: Sender,
    used: Instant,
}

/// One connection, as requests are sent on it.
pub(super) enum Sender {
    H1(http1::SendRequest<WasiBody>),
    H2(http2::SendRequest<WasiBody>),
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The request, if nothing of it went out.
    pub(super) request: Option<Request<WasiBody>>,
    pub(super) error: hyper::Error,
}

impl Sender {
    /// Sends one request, whose URI is absolute. Errors: what became of the request, or its URI cannot be sent.
    pub(super) async fn send(
        &mut self,
        mut request: Request<WasiBody>,
    ) -> Result<std::result::Result<Response<Incoming>, Unanswered>> {
        let uri = request.uri().clone();
        let sent = match self {
            Self::H1(sender) => {
                *request.uri_mut() = only_path(&uri)?;
                sender.try_send_request(request).await
            }
            Self::H2(sender) => {
                // It is in the URI.
                request.headers_mut().remove(HOST);
                sender.try_send_request(request).await
            }
        };
        Ok(sent.map_err(|error| Unanswered::of(error, &uri)))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }
}

impl Unanswered {
    fn of(mut error: TrySendError<Request<WasiBody>>, uri: &Uri) -> Self {
        let request = error.take_message().map(|mut request| {
            let host = uri.authority().map(|own| own.as_str()).unwrap_or_default();
            if let Ok(host) = HeaderValue::from_str(host) {
                request.headers_mut().insert(HOST, host);
            }
            *request.uri_mut() = uri.clone();
            request
        });
        Self {
            request,
            error: error.into_error(),
        }
    }
}

impl Pool {
    /// Whether a connection to `endpoint` is kept.
    #[cfg(test)]
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        let kept = self.kept();
        kept.all.iter().any(|entry| entry.endpoint == *endpoint)
    }

    /// A kept connection to `endpoint`, if there is one.
    pub(super) fn take(&self, endpoint: &Endpoint) -> Option<Sender> {
        let mut kept = self.kept();
        kept.all.retain(|entry| !entry.sender.is_closed());
        let mut own = kept.all.iter_mut().enumerate();
        let (at, entry) = own.rfind(|(_, entry)| entry.endpoint == *endpoint)?;
        if let Sender::H2(sender) = &entry.sender {
            entry.used = Instant::now();
            return Some(Sender::H2(sender.clone()));
        }
        Some(kept.all.remove(at).sender)
    }

    /// Keeps a connection to `endpoint` on which nothing is under way, or which takes several requests at a time.
    fn keep(self: &Arc<Self>, endpoint: Endpoint, sender: Sender) {
        let mut kept = self.kept();
        if kept.all.len() >= MAX_KEPT {
            let oldest = kept.all.iter().enumerate();
            let oldest = oldest.min_by_key(|(_, entry)| entry.used).map(|(at, _)| at);
            oldest.map(|at| kept.all.remove(at));
        }
        let number = kept.next;
        kept.next += 1;
        kept.all.push(Entry {
            number,
            endpoint,
            sender,
            used: Instant::now(),
        });
        drop(kept);
        let own = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(left) = own.left(number) {
                tokio::time::sleep(left).await;
            }
        });
    }

    /// For how much longer an entry is kept; none if it is there no more, or from now on.
    fn left(&self, number: u64) -> Option<Duration> {
        let mut kept = self.kept();
        let at = kept.all.iter().position(|entry| entry.number == number)?;
        let left = MAX_IDLE.saturating_sub(kept.all[at].used.elapsed());
        if left.is_zero() || kept.all[at].sender.is_closed() {
            kept.all.remove(at);
            return None;
        }
        Some(left)
    }

    /// Keeps a connection that was just made, if it takes several requests at a time.
    pub(super) fn share(self: &Arc<Self>, endpoint: &Endpoint, sender: &Sender) {
        if let Sender::H2(own) = sender {
            self.keep(endpoint.clone(), Sender::H2(own.clone()));
        }
    }

    /// Keeps a connection that takes one request at a time, once the answer to its last one has been read.
    pub(super) fn keep_when_ready(self: &Arc<Self>, endpoint: Endpoint, sender: Sender) {
        let own = Arc::clone(self);
        if let Sender::H1(mut sender) = sender {
            tokio::spawn(async move {
                if sender.ready().await.is_ok() {
                    own.keep(endpoint, Sender::H1(sender));
                }
            });
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        super::broken(unanswered.error)
    }
}
