//! The send queue of one connection, which all of its streams share.
//!
//! ```text
//! SendStream (one a stream) --room?--> SendQueue --take--> the connection's writer --> TCP
//! ```
//! Invariants: streams wait while [`MAX_QUEUED_BYTES`] bytes are unsent, so that a slow client slows its program down
//! and occupies no memory; frames are sent in the order in which they were queued; after `fail` nothing is accepted and
//! every waiting task is woken.
//! Must not know: what the bytes mean.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// Bytes in the queue at which streams wait.
const MAX_QUEUED_BYTES: usize = 128 << 10;
/// Bytes in the queue at which the connection is not read: the client causes replies and does not read them.
const READ_PAUSE_BYTES: usize = MAX_QUEUED_BYTES + (64 << 10);
/// Most bytes of a stream in one frame.
pub const MAX_FRAME: usize = 32 << 10;

/// One item to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame of SPDY, or a binary WebSocket message.
    Bytes(Vec<u8>),
    /// A WebSocket text message.
    Text(String),
    /// A WebSocket ping.
    Ping,
    /// The end of a WebSocket.
    Close,
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Item::Bytes(bytes) => bytes.len(),
            Item::Text(text) => text.len(),
            Item::Ping | Item::Close => 1,
        }
    }
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// The writer holds items that are not sent yet.
    writing: bool,
    failed: bool,
    waiting: Vec<Waker>,
}

impl State {
    fn wake_all(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// The queue of one connection.
#[derive(Default)]
pub struct SendQueue {
    state: Mutex<State>,
    /// Signals items, or failure. Only the writer waits.
    filled: Notify,
    /// Signals that items were sent, or failure.
    drained: Notify,
}

impl SendQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item without waiting; for small ones that cannot wait. False after `fail`.
    pub fn push(&self, item: Item) -> bool {
        let mut state = self.lock();
        if state.failed {
            return false;
        }
        state.bytes += item.len();
        state.items.push_back(item);
        drop(state);
        self.filled.notify_one();
        true
    }

    /// Waits for room for a frame of a stream. Errors: `BrokenPipe` after `fail`.
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.bytes < MAX_QUEUED_BYTES {
            return Poll::Ready(Ok(()));
        }
        let waker = context.waker();
        if !state.waiting.iter().any(|other| other.will_wake(waker)) {
            state.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Takes all queued items, once there are any; `None` after `fail`. A call also means that the items taken before
    /// have been sent. For the connection's writer.
    pub async fn take(&self) -> Option<VecDeque<Item>> {
        loop {
            {
                let mut state = self.lock();
                state.writing = !state.items.is_empty();
                if state.failed {
                    return None;
                }
                if state.writing {
                    state.bytes = 0;
                    state.wake_all();
                    return Some(std::mem::take(&mut state.items));
                }
            }
            self.drained.notify_waiters();
            self.filled.notified().await;
        }
    }

    /// Waits until everything was sent, or until `fail`.
    pub async fn sent(&self) {
        self.until(|state| state.failed || (state.items.is_empty() && !state.writing))
            .await;
    }

    /// Waits while [`READ_PAUSE_BYTES`] or more are queued, which streams alone cannot cause.
    pub async fn wait_below_read_pause(&self) {
        self.until(|state| state.failed || state.bytes < READ_PAUSE_BYTES)
            .await;
    }

    async fn until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            if done(&self.lock()) {
                return;
            }
            drained.await;
        }
    }

    /// Fails the queue, when the connection closed: drops all items and wakes all waiting tasks.
    pub fn fail(&self) {
        let mut state = self.lock();
        state.failed = true;
        state.items.clear();
        state.bytes = 0;
        state.wake_all();
        drop(state);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Wakes waiting streams, to check again whether they may send.
    fn wake(&self) {
        self.lock().wake_all();
    }
}

/// How the bytes of one stream are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// DATA frames of this stream.
    Spdy(u32),
    /// Binary messages that begin with this channel's number.
    Binary(u8),
    /// Text messages that begin with this channel's digit, followed by base64.
    Base64(u8),
}

/// The sending side of one stream.
pub struct SendStream {
    send_queue: Arc<SendQueue>,
    framing: Framing,
    ended: AtomicBool,
}

impl SendStream {
    /// Creates a stream; `may_send` is false for one that the client opened for its own sending only.
    pub fn new(send_queue: Arc<SendQueue>, framing: Framing, may_send: bool) -> Arc<SendStream> {
        let ended = AtomicBool::new(!may_send);
        Arc::new(SendStream {
            send_queue,
            framing,
            ended,
        })
    }

    /// Whether nothing more is sent.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the stream in order; a second call has no effect.
    pub fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel)
            && let Framing::Spdy(stream) = self.framing
        {
            self.send_queue
                .push(Item::Bytes(super::spdy::frame::data(stream, b"", true)));
        }
        self.send_queue.wake();
    }

    /// Resets the stream in both directions; without SPDY it just ends.
    pub fn reset(&self) {
        self.ended.store(true, Ordering::Release);
        if let Framing::Spdy(stream) = self.framing {
            let frame = super::spdy::frame::reset(stream, super::spdy::frame::ResetCode::Cancel);
            self.send_queue.push(Item::Bytes(frame));
        }
        self.send_queue.wake();
    }

    /// Ends the stream after the client reset it.
    pub fn stop(&self) {
        self.ended.store(true, Ordering::Release);
        self.send_queue.wake();
    }

    fn item(&self, bytes: &[u8]) -> Item {
        match self.framing {
            Framing::Spdy(stream) => Item::Bytes(super::spdy::frame::data(stream, bytes, false)),
            Framing::Binary(channel) => Item::Bytes([&[channel], bytes].concat()),
            Framing::Base64(channel) => {
                let mut text = String::from(char::from(b'0' + channel));
                super::base64::encode(bytes, &mut text);
                Item::Text(text)
            }
        }
    }

    /// Queues a message without waiting, even an empty one.
    pub fn send_now(&self, bytes: &[u8]) {
        self.send_queue.push(self.item(bytes));
    }

    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        std::task::ready!(self.send_queue.poll_room(context))?;
        // The stream ended between the two checks: wake it here.
        if self.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(MAX_FRAME);
        if taken > 0 && !self.send_queue.push(self.item(&bytes[..taken])) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(taken))
    }
}

/// A [`SendStream`] as an `AsyncWrite`; dropping it ends the stream.
pub struct SendStreamWriter(pub Arc<SendStream>);

impl tokio::io::AsyncWrite for SendStreamWriter {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(context, bytes)
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's writer sends without a flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SendStreamWriter {
    fn drop(&mut self) {
        self.0.end();
    }
}
