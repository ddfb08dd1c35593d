//! Bodies on their way to guests: which clients let theirs wait, and what becomes of them when others want their turn.
//!
//! ```text
//! client --> Upload --frames--> guest
//!               \ tells its Progress when the guest waits, and how much has come
//! ```
//! Called by [`super::requests`], for each request with a body. A guest that waits for its client has its turn meanwhile, so
//! that clients who send nothing would keep all others out at no cost.
//! Invariants: a client may be as slow as it likes while there are turns for others; for a newcomer the guest that has waited
//! longest for its client, at least a second, finds its body broken off; what has come meanwhile is never lost.
//! Not here: turns, how long a guest may take, clients that take nothing of their answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

/// A guest that has waited less than this for its client is left alone.
const LEAST_STALL: Duration = Duration::from_secs(1);
/// How much has to come to end the wait. Bytes.
const STEP: u64 = 4 << 10;
/// No guest waits.
const NEVER: u64 = u64::MAX;

/// How the body of one request comes in.
struct Progress {
    begun: Instant,
    /// Since when the guest has waited, in milliseconds since the beginning.
    since: AtomicU64,
    /// Bytes that have come since then.
    bytes: AtomicU64,
    /// Somebody else wants its turn.
    is_unwanted: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Progress {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            since: AtomicU64::new(NEVER),
            bytes: AtomicU64::new(0),
            is_unwanted: AtomicBool::new(false),
            waker: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// The guest waits, from now on if it has not yet.
    fn started_waiting(&self, waker: &Waker) {
        *locked(&self.waker) = Some(waker.clone());
        let (known, now) = (Ordering::Relaxed, self.now());
        let _ = self.since.compare_exchange(NEVER, now, known, known);
    }

    /// So many bytes have come.
    fn received(&self, bytes: usize) {
        self.is_unwanted.store(false, Ordering::Relaxed);
        let bytes = bytes as u64;
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= STEP {
            self.stopped_waiting();
        }
    }

    /// The guest waits no more.
    fn stopped_waiting(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.since.store(NEVER, Ordering::Relaxed);
    }

    /// For how long the guest has waited, unless its body was broken off already.
    fn stalled(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        if since == NEVER || self.is_unwanted.load(Ordering::Relaxed) {
            return None;
        }
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    fn give_up(&self) {
        self.is_unwanted.store(true, Ordering::SeqCst);
        if let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
    }
}

/// Nothing panics under the locks.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bodies on their way to the guests of a server; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Uploads(Arc<Mutex<HashMap<usize, Arc<Progress>>>>);

impl Uploads {
    /// `body`, as the guest of its request is to have it.
    pub(super) fn track(&self, body: WasiBody) -> WasiBody {
        if body.is_end_stream() {
            return body;
        }
        let progress = Arc::new(Progress::new());
        let key = Arc::as_ptr(&progress) as usize;
        locked(&self.0).insert(key, Arc::clone(&progress));
        let uploads = self.clone();
        Upload {
            body,
            progress,
            uploads,
        }
        .boxed_unsync()
    }

    /// Breaks off the body that its guest has waited for longest.
    pub(super) fn give_up_slowest(&self) {
        let all = locked(&self.0);
        let stalled = all.values();
        let stalled = stalled.filter_map(|progress| Some((progress.stalled()?, progress)));
        if let Some((waited, slowest)) = stalled.max_by_key(|(waited, _)| *waited)
            && waited >= LEAST_STALL
        {
            slowest.give_up();
        }
    }
}

/// The body of a request.
struct Upload {
    body: WasiBody,
    progress: Arc<Progress>,
    uploads: Uploads,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.progress) as usize;
        locked(&self.uploads.0).remove(&key);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                match &frame {
                    Some(Ok(frame)) => self
                        .progress
                        .received(frame.data_ref().map_or(0, Bytes::len)),
                    Some(Err(_)) | None => self.progress.stopped_waiting(),
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                // First, so that whoever gives it up from here on wakes it.
                self.progress.started_waiting(context.waker());
                match self.progress.is_unwanted.load(Ordering::SeqCst) {
                    true => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                    false => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    /// What a client sends part by part.
    struct Parts(UnboundedReceiver<Bytes>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            let part = self.0.poll_recv(context);
            part.map(|part| part.map(|part| Ok(Frame::data(part))))
        }
    }

    fn body(uploads: &Uploads) -> (UnboundedSender<Bytes>, WasiBody) {
        let (client, parts) = unbounded_channel();
        (client, uploads.track(Parts(parts).boxed_unsync()))
    }

    async fn waits(body: &mut WasiBody) -> bool {
        let part = tokio::time::timeout(Duration::from_millis(50), body.frame());
        part.await.is_err()
    }

    #[tokio::test]
    async fn a_newcomer_has_the_body_broken_off_that_was_waited_for_longest_and_no_other() {
        let uploads = Uploads::default();
        let (_slow, mut slowest) = body(&uploads);
        assert!(waits(&mut slowest).await);
        let (busy, mut other) = body(&uploads);
        assert!(waits(&mut other).await);
        // Nobody has waited for a second.
        uploads.give_up_slowest();
        assert!(waits(&mut slowest).await && waits(&mut other).await);
        tokio::time::sleep(LEAST_STALL).await;
        uploads.give_up_slowest();
        let part = slowest.frame().await.unwrap();
        assert!(matches!(part, Err(Error::ConnectionReadTimeout)));
        // It is broken off once: the next newcomer asks the next one, which has something after all.
        busy.send(Bytes::from_static(b"late")).unwrap();
        uploads.give_up_slowest();
        let part = other.frame().await.unwrap().unwrap();
        assert_eq!(part.into_data().unwrap(), "late");
        assert!(waits(&mut other).await);
        // A trickle is no progress.
        uploads.give_up_slowest();
        assert!(matches!(other.frame().await, Some(Err(_))));
        drop((slowest, other));
        assert!(locked(&uploads.0).is_empty());
    }

    #[tokio::test]
    async fn who_sends_enough_and_whose_guest_is_slow_is_left_alone() {
        let uploads = Uploads::default();
        let (client, mut body) = body(&uploads);
        assert!(waits(&mut body).await);
        tokio::time::sleep(LEAST_STALL).await;
        client.send(Bytes::from(vec![0; STEP as usize])).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        // The guest computes, and nobody waits for the client.
        tokio::time::sleep(LEAST_STALL).await;
        uploads.give_up_slowest();
        assert!(waits(&mut body).await);
        drop(client);
        assert!(body.frame().await.is_none());
    }
}
