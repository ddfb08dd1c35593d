//! The receive buffer of one stream.
//!
//! ```text
//! TCP --> the connection's reader --RecvSink--> buffer --RecvStream--> the program's standard input, the pod's socket
//! ```
//! Invariants: the reader stops while a stream holds [`STREAM_LIMIT`] bytes or all streams of a connection together
//! hold [`CONNECTION_LIMIT`], and with less than that where its tenant's connections together hold as much as remains for
//! all others, so that TCP slows the client down; a connection that holds nothing may always take a piece; when
//! a `RecvStream` is dropped, further data of its stream is discarded.
//! Must not know: frames.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

use super::budget::{Budget, Share};

/// Unread bytes of one stream at which its connection is no longer read.
const STREAM_LIMIT: usize = 256 << 10;
/// The same limit for all streams of a connection.
const CONNECTION_LIMIT: usize = 1 << 20;

/// Most bytes that are added at once.
pub const PIECE: usize = 64 << 10;
/// What all connections together hold, beside a piece each.
const MEMORY: usize = 32 << 20;

/// Bytes that all streams of a connection hold together, and the message that it has not taken apart yet.
pub struct RecvBudget {
    bytes: AtomicUsize,
    message: AtomicUsize,
    share: Mutex<Share>,
    freed: Notify,
}

/// The memory of a server's connections.
pub fn memory() -> Budget {
    Budget::new(MEMORY, PIECE)
}

impl Default for RecvBudget {
    /// Of a connection that has all memory for itself.
    fn default() -> Self {
        Self::new(&memory(), "")
    }
}

impl RecvBudget {
    /// Of a connection of `tenant` that has the `memory` with others.
    pub fn new(memory: &Budget, tenant: &str) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            message: AtomicUsize::new(0),
            share: Mutex::new(memory.share_of(tenant)),
            freed: Notify::new(),
        }
    }

    /// Counts bytes of a message that is not whole yet. False if it is longer than a piece and there is no memory for it.
    pub fn add_to_message(&self, bytes: usize) -> bool {
        let all = self.message.fetch_add(bytes, Ordering::AcqRel) + bytes;
        all <= PIECE || self.covers(0)
    }

    /// Some bytes of the message go to a stream, or are done with.
    pub fn take_from_message(&self, bytes: usize) {
        let less = |message: usize| Some(message.saturating_sub(bytes));
        let _ = self
            .message
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// The message is done with.
    pub fn end_message(&self) {
        self.message.store(0, Ordering::Release);
        self.shrink();
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.shrink();
        self.freed.notify_waiters();
    }

    fn held(&self) -> usize {
        self.bytes.load(Ordering::Acquire) + self.message.load(Ordering::Acquire)
    }

    fn covers(&self, more: usize) -> bool {
        self.share().covers(self.held() + more)
    }

    fn shrink(&self) {
        self.share().shrink(self.held());
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another piece may be added.
    fn has_room(&self) -> bool {
        let bytes = self.bytes.load(Ordering::Acquire);
        bytes == 0 || (bytes < CONNECTION_LIMIT && self.covers(PIECE))
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
        let is_full = state.unread() >= STREAM_LIMIT || !self.0.budget.has_room();
        state.reader_dropped || state.end != End::Open || !is_full
    }

    /// Adds at most [`PIECE`] bytes; discards them after an end, or once the `RecvStream` is dropped.
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

    #[tokio::test]
    async fn connections_together_hold_no_more_than_there_is_and_each_goes_on() {
        let memory = Budget::new(1 << 20, PIECE);
        let one = || Arc::new(RecvBudget::new(&memory, "a"));
        let budgets: Vec<_> = (0..50).map(|_| one()).collect();
        let mut streams: Vec<_> = budgets.iter().map(stream).collect();
        let mut all = 0;
        while let Some((sink, _)) = streams.iter().find(|(sink, _)| sink.has_room()) {
            sink.push(&[0; PIECE]);
            all += PIECE;
        }
        assert!(all <= (1 << 20) + 51 * PIECE, "{all}");
        // A new one has room for a piece, and so has each whose reader has read.
        let late = one();
        let (sink, _stream) = stream(&late);
        assert!(sink.has_room());
        for (sink, reader) in &mut streams {
            reader.read_exact(&mut [0; PIECE]).await.unwrap();
            while !sink.has_room() {
                reader.read_exact(&mut [0; PIECE]).await.unwrap();
            }
        }
    }

    #[test]
    fn a_long_message_has_memory_only_while_there_is_some() {
        let memory = Budget::new(1 << 20, PIECE);
        let of = |tenant: &str| RecvBudget::new(&memory, tenant);
        let (one, two) = (of("a"), of("b"));
        assert!(one.add_to_message(400 << 10));
        assert!(two.add_to_message(PIECE), "what all have");
        assert!(!two.add_to_message(800 << 10));
        // A short one always finds its place, whatever waits already.
        two.end_message();
        let (sink, _stream) = stream(&Arc::new(two));
        sink.push(&[0; PIECE]);
        assert!(one.add_to_message(150 << 10));
        assert!(sink.0.budget.add_to_message(32 << 10));
        drop((sink, _stream));
        let two = of("b");
        one.end_message();
        assert!(two.add_to_message(400 << 10));
    }
}
