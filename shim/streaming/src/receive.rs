//! The receive buffer of one stream.
//!
//! ```text
//! TCP --> the connection's reader --RecvSink--> buffer --RecvStream--> the program's standard input, the pod's socket
//! ```
//! Invariants: the reader stops while a stream holds [`STREAM_LIMIT`] bytes or all streams of a connection together
//! hold [`CONNECTION_LIMIT`], so that TCP slows the client down; when a `RecvStream` is dropped, further data of its
//! stream is discarded.
//! Must not know: frames.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Unread bytes of one stream at which its connection is no longer read.
const STREAM_LIMIT: usize = 256 << 10;
/// The same limit for all streams of a connection.
const CONNECTION_LIMIT: usize = 1 << 20;

/// Bytes that all streams of a connection hold together.
#[derive(Default)]
pub struct RecvBudget {
    bytes: AtomicUsize,
    freed: Notify,
}

impl RecvBudget {
    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.freed.notify_waiters();
    }
}

/// How a stream ends for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Open: more may come.
    Open,
    /// The client ended the stream.
    Finished,
    /// The client reset the stream, or the connection closed.
    Reset,
}

struct State {
    /// Unread from `read` on.
    buffer: Vec<u8>,
    read: usize,
    end: End,
    /// The `RecvStream` was dropped.
    reader_dropped: bool,
    reader: Option<Waker>,
}

impl State {
    fn unread(&self) -> usize {
        self.buffer.len() - self.read
    }
}

struct Shared {
    state: Mutex<State>,
    budget: Arc<RecvBudget>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end of the buffer, for the connection's reader. Dropping it without `finish` resets the stream.
pub struct RecvSink(Arc<Shared>);

/// The reading end of the buffer, for the program or the pod's socket.
pub struct RecvStream(Arc<Shared>);

/// A stream's two ends.
pub fn stream(budget: &Arc<RecvBudget>) -> (RecvSink, RecvStream) {
    let state = State {
        buffer: Vec::new(),
        read: 0,
        end: End::Open,
        reader_dropped: false,
        reader: None,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        budget: Arc::clone(budget),
    });
    (RecvSink(Arc::clone(&shared)), RecvStream(shared))
}

impl RecvSink {
    /// Waits until there is room.
    pub async fn room(&self) {
        let budget = &self.0.budget;
        loop {
            let mut freed = std::pin::pin!(budget.freed.notified());
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
        let full = self.0.budget.bytes.load(Ordering::Acquire) >= CONNECTION_LIMIT;
        state.reader_dropped || state.end != End::Open || (state.unread() < STREAM_LIMIT && !full)
    }

    /// Adds bytes; discards them after an end, or once the `RecvStream` is dropped.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        if state.reader_dropped || state.end != End::Open || bytes.is_empty() {
            return;
        }
        if state.read > 0 && state.buffer.len() + bytes.len() > state.buffer.capacity() {
            let read = std::mem::take(&mut state.read);
            state.buffer.drain(..read);
        }
        state.buffer.extend_from_slice(bytes);
        self.0.budget.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Ends the stream in order.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// Ends the stream as reset: drops unread bytes, and makes reading fail.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Whether further bytes would be discarded.
    pub fn has_ended(&self) -> bool {
        let state = self.0.lock();
        state.end != End::Open || state.reader_dropped
    }

    fn end(&self, end: End) {
        let mut state = self.0.lock();
        if state.end != End::Open && end == End::Finished {
            return;
        }
        let lost = end == End::Reset && !state.reader_dropped;
        // A finished stream stays readable to its end when its connection closes.
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
        self.0.budget.release(freed);
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

impl Drop for RecvSink {
    fn drop(&mut self) {
        self.reset();
    }
}

impl AsyncRead for RecvStream {
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
            self.0.budget.release(count);
            return Poll::Ready(Ok(()));
        }
        match state.end {
            End::Finished => Poll::Ready(Ok(())),
            End::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            End::Open if into.remaining() == 0 => Poll::Ready(Ok(())),
            End::Open => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reader_dropped = true;
        let freed = clear(&mut state);
        drop(state);
        self.0.budget.release(freed);
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
        let (sink, mut recv_stream) = stream(&Arc::default());
        let mut all = Vec::new();
        for round in 0..200_u8 {
            sink.push(&vec![round; 1000]);
            let mut some = vec![0; 700];
            recv_stream.read_exact(&mut some).await.unwrap();
            all.extend(some);
        }
        sink.finish();
        sink.push(b"too late");
        drop(sink);
        recv_stream.read_to_end(&mut all).await.unwrap();
        let want: Vec<u8> = (0..200_u8).flat_map(|round| vec![round; 1000]).collect();
        assert!(all == want);
    }

    #[tokio::test]
    async fn a_full_stream_and_a_full_connection_wait_for_their_readers() {
        let budget = Arc::default();
        let (sink, mut recv_stream) = stream(&budget);
        let others: Vec<_> = (0..3).map(|_| stream(&budget)).collect();
        sink.push(&vec![1; STREAM_LIMIT]);
        assert!(!sink.has_room() && others[0].0.has_room());
        for (other, _) in &others {
            other.push(&vec![2; STREAM_LIMIT]);
        }
        let (late, _late_stream) = stream(&budget);
        assert!(!late.has_room(), "the connection is full");
        assert!(late.room().now_or_never().is_none());
        recv_stream.read_exact(&mut [0; 1]).await.unwrap();
        late.room().now_or_never().unwrap();
        drop(others);
        drop(recv_stream);
        assert!(sink.has_room(), "without a reader it discards");
        sink.push(&[0; 10]);
        assert_eq!(budget.bytes.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn a_stream_of_a_lost_connection_is_an_error_not_an_end() {
        let (sink, mut recv_stream) = stream(&Arc::default());
        sink.push(b"half a wo");
        drop(sink);
        let error = recv_stream.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
