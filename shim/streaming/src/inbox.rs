//! What came in for one stream and was not read yet.
//!
//! ```text
//! TCP --> the connection's reader --Feed--> buffer --Intake--> the program's standard input, the pod's socket
//! ```
//! Invariants: the reader stops while a stream holds [`STREAM_LIMIT`] bytes or all of a connection's together hold
//! [`CONNECTION_LIMIT`], so that TCP pushes back and no client takes memory; nothing is ever waited for twice: an intake
//! that is dropped makes its stream swallow what still comes.
//! Not here: frames.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Unread bytes of one stream at which its connection is no longer read.
const STREAM_LIMIT: usize = 256 << 10;
/// The same of all streams of a connection.
const CONNECTION_LIMIT: usize = 1 << 20;

/// What all streams of a connection hold together.
#[derive(Default)]
pub struct Holding {
    bytes: AtomicUsize,
    freed: Notify,
}

impl Holding {
    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.freed.notify_waiters();
    }
}

/// How a stream ends for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More may come.
    Open,
    /// The client has said all.
    Finished,
    /// The client gave it up, or is gone.
    Lost,
}

struct State {
    /// Unread from `read` on.
    buffer: Vec<u8>,
    read: usize,
    end: End,
    /// Nobody reads any more.
    unwanted: bool,
    reader: Option<Waker>,
}

impl State {
    fn unread(&self) -> usize {
        self.buffer.len() - self.read
    }
}

struct Shared {
    state: Mutex<State>,
    holding: Arc<Holding>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the connection's reader. Dropped without an end, the stream is lost.
pub struct Feed(Arc<Shared>);

/// The end of whoever the bytes are for.
pub struct Intake(Arc<Shared>);

/// A stream's two ends.
pub fn stream(holding: &Arc<Holding>) -> (Feed, Intake) {
    let state = State {
        buffer: Vec::new(),
        read: 0,
        end: End::Open,
        unwanted: false,
        reader: None,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        holding: Arc::clone(holding),
    });
    (Feed(Arc::clone(&shared)), Intake(shared))
}

impl Feed {
    /// Waits until bytes may be added.
    pub async fn room(&self) {
        let holding = &self.0.holding;
        loop {
            let mut freed = std::pin::pin!(holding.freed.notified());
            freed.as_mut().enable();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    /// Whether bytes may be added now.
    pub fn has_room(&self) -> bool {
        let state = self.0.lock();
        let full = self.0.holding.bytes.load(Ordering::Acquire) >= CONNECTION_LIMIT;
        state.unwanted || state.end != End::Open || (state.unread() < STREAM_LIMIT && !full)
    }

    /// Adds what came in; swallowed after an end, or when nobody reads.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        if state.unwanted || state.end != End::Open || bytes.is_empty() {
            return;
        }
        if state.read > 0 && state.buffer.len() + bytes.len() > state.buffer.capacity() {
            let read = std::mem::take(&mut state.read);
            state.buffer.drain(..read);
        }
        state.buffer.extend_from_slice(bytes);
        self.0
            .holding
            .bytes
            .fetch_add(bytes.len(), Ordering::AcqRel);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// The client has said all it has to say.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// The client gave the stream up: what was not read is dropped, and reading fails.
    pub fn lose(&self) {
        self.end(End::Lost);
    }

    /// Whether nothing that still came would be taken.
    pub fn has_ended(&self) -> bool {
        let state = self.0.lock();
        state.end != End::Open || state.unwanted
    }

    fn end(&self, end: End) {
        let mut state = self.0.lock();
        if state.end != End::Open && end == End::Finished {
            return;
        }
        let lost = end == End::Lost && !state.unwanted;
        // A stream that was finished stays readable to its end when its connection goes.
        let freed = if lost && state.end == End::Open {
            clear(&mut state)
        } else {
            0
        };
        if state.end == End::Open {
            state.end = end;
        }
        let reader = state.reader.take();
        drop(state);
        self.0.holding.release(freed);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

fn clear(state: &mut State) -> usize {
    let unread = state.unread();
    state.buffer = Vec::new();
    state.read = 0;
    unread
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.lose();
    }
}

impl AsyncRead for Intake {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let count = state.unread().min(into.remaining());
        if count > 0 {
            into.put_slice(&state.buffer[state.read..state.read + count]);
            state.read += count;
            if state.unread() == 0 {
                state.buffer.clear();
                state.read = 0;
            }
            drop(state);
            self.0.holding.release(count);
            return Poll::Ready(Ok(()));
        }
        match state.end {
            End::Finished => Poll::Ready(Ok(())),
            End::Lost => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            End::Open if into.remaining() == 0 => Poll::Ready(Ok(())),
            End::Open => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.unwanted = true;
        let freed = clear(&mut state);
        drop(state);
        self.0.holding.release(freed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_in_order_and_the_end_after_them() {
        let (feed, mut intake) = stream(&Arc::default());
        let mut all = Vec::new();
        for round in 0..200_u8 {
            feed.push(&vec![round; 1000]);
            let mut some = vec![0; 700];
            intake.read_exact(&mut some).await.unwrap();
            all.extend(some);
        }
        feed.finish();
        feed.push(b"too late");
        drop(feed);
        intake.read_to_end(&mut all).await.unwrap();
        let want: Vec<u8> = (0..200_u8).flat_map(|round| vec![round; 1000]).collect();
        assert!(all == want);
    }

    #[tokio::test]
    async fn a_full_stream_and_a_full_connection_wait_for_their_readers() {
        let holding = Arc::default();
        let (feed, mut intake) = stream(&holding);
        let others: Vec<_> = (0..3).map(|_| stream(&holding)).collect();
        feed.push(&vec![1; STREAM_LIMIT]);
        assert!(!feed.has_room() && others[0].0.has_room());
        for (other, _) in &others {
            other.push(&vec![2; STREAM_LIMIT]);
        }
        let (late, _late_intake) = stream(&holding);
        assert!(!late.has_room(), "the connection is full");
        assert!(late.room().now_or_never().is_none());
        intake.read_exact(&mut [0; 1]).await.unwrap();
        late.room().now_or_never().unwrap();
        drop(others);
        drop(intake);
        assert!(feed.has_room(), "nobody reads: it swallows");
        feed.push(&[0; 10]);
        assert_eq!(holding.bytes.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn a_stream_whose_connection_went_is_an_error_not_an_end() {
        let (feed, mut intake) = stream(&Arc::default());
        feed.push(b"half a wo");
        drop(feed);
        let error = intake.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
