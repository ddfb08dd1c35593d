//! Answers on their way to clients: how much of them has been taken, and what becomes of one that nobody takes.
//!
//! ```text
//! guest --frames--> Answer --pieces--> hyper --> the client's connection
//!                      \________________/ each tells its Progress what was sent
//! ```
//! Called by [`super::connections`], which runs each connection of HTTP/1.1 and each stream of HTTP/2 by
//! [`Answers::attend`], and by [`super::requests`]. Whether a client reads is seen by what leaves: a guest that is slow to
//! write holds up nothing, and a client that takes little by little keeps its answer.
//! Invariants: an answer counts until its last byte has left the process; one of which nothing has left for the server's
//! patience is given up; no more answers are unfinished than there is room for: for a newcomer the one that has waited
//! longest for its client is given up.
//! Not here: what is answered, guests.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::Version;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, WasiBody};

use super::connections::Active;

/// How many answers may wait for their clients, for each request that may be under way.
const FACTOR: usize = 2;
/// An answer of which something left within this time is not given up for a newcomer.
const LEAST_STALL: Duration = Duration::from_secs(1);
/// How long a newcomer waits for the end of an answer that was given up.
const ROOM_TIMEOUT: Duration = Duration::from_millis(250);
/// How much has to leave to count as progress, where there is as much. Bytes.
const STEP: u64 = 4 << 10;
/// Most that HTTP/2 is given at once, which it holds when it has no leave of the client to send. Bytes.
const HTTP2_PIECE: usize = 16 << 10;

tokio::task_local! {
    /// Of the connection or stream that is being polled.
    static PROGRESS: Arc<Progress>;
}

/// What has left of the answers on one connection or stream.
struct Progress {
    begun: Instant,
    /// Pieces that wait to be sent.
    pieces: AtomicUsize,
    /// Bytes since the last step.
    bytes: AtomicU64,
    /// When the last step was made, in milliseconds since the beginning.
    step_at: AtomicU64,
    /// The answers are unwanted: their room is needed.
    unwanted: Notify,
    /// The last piece has left.
    emptied: Notify,
}

impl Progress {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            pieces: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            step_at: AtomicU64::new(0),
            unwanted: Notify::new(),
            emptied: Notify::new(),
        }
    }

    fn step(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.bytes.store(0, Ordering::Relaxed);
        self.step_at.store(now, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        let bytes = bytes as u64;
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= STEP {
            self.step();
        }
    }

    /// For how long the client has taken nothing of what there is; `None` when there is nothing.
    fn stalled(&self) -> Option<Duration> {
        if self.pieces.load(Ordering::Acquire) == 0 {
            return None;
        }
        let step_at = Duration::from_millis(self.step_at.load(Ordering::Relaxed));
        Some(self.begun.elapsed().saturating_sub(step_at))
    }

    /// Waits until the client has taken nothing for `patience`, or its room is needed.
    async fn given_up(&self, patience: Duration) {
        loop {
            let stalled = self.stalled().unwrap_or_default();
            let Some(left) = patience.checked_sub(stalled).filter(|left| !left.is_zero()) else {
                return;
            };
            if tokio::time::timeout(left, self.unwanted.notified())
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    /// Waits until all pieces have left.
    async fn finished(&self) {
        while self.pieces.load(Ordering::Acquire) > 0 {
            self.emptied.notified().await;
        }
    }
}

/// The answers of a server; cheap to clone.
#[derive(Clone)]
pub(super) struct Answers(Arc<Shared>);

struct Shared {
    patience: Duration,
    room: Arc<Semaphore>,
    under_way: Mutex<HashMap<usize, Arc<Progress>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Arc<Progress>>> {
        // Nothing panics under the lock.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection or stream that is listed.
struct Listed<'a> {
    shared: &'a Shared,
    progress: Arc<Progress>,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.progress) as usize;
        self.shared.lock().remove(&key);
    }
}

/// How a connection or stream ended.
pub(super) enum Taken<T> {
    /// By itself, and everything has been taken.
    All(T),
    /// Its client takes nothing, or its room was needed.
    GivenUp,
}

impl Answers {
    /// Of a server with `max_requests`, whose clients must take something every `patience`.
    pub(super) fn new(max_requests: u32, patience: Duration) -> Self {
        Self(Arc::new(Shared {
            patience,
            room: Arc::new(Semaphore::new(max_requests as usize * FACTOR)),
            under_way: Mutex::default(),
        }))
    }

    /// Runs a connection or stream, until it and its answers have ended or are given up.
    pub(super) async fn attend<F: Future>(&self, work: F) -> Taken<F::Output> {
        let progress = Arc::new(Progress::new());
        let key = Arc::as_ptr(&progress) as usize;
        self.0.lock().insert(key, Arc::clone(&progress));
        let listed = Listed {
            shared: &self.0,
            progress: Arc::clone(&progress),
        };
        let mut given_up = pin!(listed.progress.given_up(self.0.patience));
        let output = tokio::select! {
            output = PROGRESS.scope(progress, work) => output,
            () = given_up.as_mut() => return Taken::GivenUp,
        };
        tokio::select! {
            biased;
            () = listed.progress.finished() => Taken::All(output),
            () = given_up => Taken::GivenUp,
        }
    }

    /// Room for another answer; `None` if there is none and nobody is slow enough to lose theirs.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(room) = Arc::clone(&self.0.room).try_acquire_owned() {
            return Some(room);
        }
        self.give_up_slowest();
        let room = Arc::clone(&self.0.room).acquire_owned();
        tokio::time::timeout(ROOM_TIMEOUT, room).await.ok()?.ok()
    }

    fn give_up_slowest(&self) {
        let under_way = self.0.lock();
        let stalled = under_way
            .values()
            .filter_map(|progress| Some((progress.stalled()?, progress)));
        let slowest = stalled.max_by_key(|(stalled, _)| *stalled);
        if let Some((stalled, progress)) = slowest
            && stalled >= LEAST_STALL
        {
            // Another newcomer gives up the next one.
            progress.step();
            progress.unwanted.notify_one();
        }
    }
}

/// What lives until the last byte of an answer has left.
struct Held {
    progress: Arc<Progress>,
    _active: Active,
    _room: Option<OwnedSemaphorePermit>,
}

/// The body of an answer.
pub(super) struct Answer {
    body: WasiBody,
    held: Arc<Held>,
    /// Most bytes of a piece.
    most: usize,
    /// Of a frame, what is left for further pieces.
    rest: Bytes,
}

impl Answer {
    /// `body` to a client that speaks `version`; `active` and `room` live until it has left.
    pub(super) fn new(
        body: WasiBody,
        version: Version,
        active: Active,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let progress = PROGRESS.try_with(Arc::clone);
        let held = Held {
            progress: progress.unwrap_or_else(|_| Arc::new(Progress::new())),
            _active: active,
            _room: room,
        };
        Self {
            body,
            held: Arc::new(held),
            most: match version {
                Version::HTTP_2 => HTTP2_PIECE,
                _ => usize::MAX,
            },
            rest: Bytes::new(),
        }
    }

    fn piece(&mut self, mut bytes: Bytes) -> Frame<Piece> {
        let piece = bytes.split_to(bytes.len().min(self.most));
        self.rest = bytes;
        Frame::data(Piece::new(piece, Arc::clone(&self.held)))
    }
}

impl Body for Answer {
    type Data = Piece;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Error>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => return Poll::Ready(Some(Err(e))),
            None => return Poll::Ready(None),
        };
        let frame = match frame.into_data() {
            Ok(bytes) => self.piece(bytes),
            Err(other) => match other.into_trailers() {
                Ok(trailers) => Frame::trailers(trailers),
                Err(_) => return Poll::Ready(None),
            },
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + rest),
            None => SizeHint::new(),
        }
    }
}

/// A piece of an answer, which hyper holds until it has left.
pub(super) struct Piece {
    bytes: Bytes,
    held: Arc<Held>,
}

impl Piece {
    fn new(bytes: Bytes, held: Arc<Held>) -> Self {
        let progress = &held.progress;
        if progress.pieces.fetch_add(1, Ordering::AcqRel) == 0 {
            // Before there was nothing to take.
            progress.step();
        }
        Self { bytes, held }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let progress = &self.held.progress;
        progress.step();
        if progress.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            progress.emptied.notify_one();
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.held.progress.sent(count);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Pieces that wait on this connection or stream.
    fn wait(progress: &Progress) {
        progress.pieces.fetch_add(1, Ordering::AcqRel);
        progress.step();
    }

    #[tokio::test]
    async fn room_is_made_by_giving_up_who_has_waited_longest_and_never_who_makes_progress() {
        let answers = Answers::new(1, PATIENCE);
        let rooms = [answers.room().await, answers.room().await];
        assert!(rooms.iter().all(Option::is_some));
        assert!(answers.room().await.is_none(), "nobody is slow");
        let slow = tokio::spawn({
            let answers = answers.clone();
            async move {
                let work = async {
                    let _rooms = rooms;
                    PROGRESS.with(|progress| wait(progress));
                    std::future::pending::<()>().await;
                };
                matches!(answers.attend(work).await, Taken::GivenUp)
            }
        });
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let early = answers.room().await.is_some();
        // On a machine that is slow enough it is not early.
        if begun.elapsed() < LEAST_STALL {
            assert!(!early, "it has waited for 0.1 s");
        }
        if !early {
            tokio::time::sleep(LEAST_STALL).await;
            assert!(answers.room().await.is_some());
        }
        assert!(slow.await.unwrap());
    }

    #[tokio::test]
    async fn who_takes_a_little_keeps_its_answer_and_who_waits_for_its_guest_is_never_given_up() {
        let answers = Answers::new(1, Duration::from_millis(300));
        let began = Instant::now();
        let taking = answers.attend(async {
            PROGRESS.with(|progress| wait(progress));
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                PROGRESS.with(|progress| progress.sent(STEP as usize));
            }
            // A trickle is no progress.
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                PROGRESS.with(|progress| progress.sent(1));
            }
        });
        let waiting = answers.attend(tokio::time::sleep(Duration::from_secs(2)));
        let (taking, waiting): (Taken<()>, _) = tokio::join!(taking, waiting);
        assert!(matches!(taking, Taken::GivenUp));
        assert!(matches!(waiting, Taken::All(())));
        assert!(began.elapsed() >= Duration::from_secs(2));
    }
}
