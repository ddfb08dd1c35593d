//! What waits to be sent on one connection: a queue that all of its streams share.
//!
//! ```text
//! Outflow (one a stream) --room?--> Outbox --take--> the connection's writer --> TCP
//! ```
//! Invariants: streams wait while [`LIMIT`] bytes are unsent, so that a client that does not read slows its program and
//! takes no memory; frames leave in the order in which they came; after `fail` nothing is taken and nobody waits.
//! Not here: what the bytes mean.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// Streams wait from here on. Bytes.
const LIMIT: usize = 128 << 10;
/// The connection is not read from here on: somebody asks for replies and does not take them. Bytes.
const FLOOD: usize = LIMIT + (64 << 10);
/// Most bytes of a stream in one frame.
pub const FRAME: usize = 32 << 10;

/// One thing to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame of SPDY, or a binary WebSocket message.
    Bytes(Vec<u8>),
    /// A WebSocket message of text.
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
    /// The writer has taken what it has not sent yet.
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
pub struct Outbox {
    state: Mutex<State>,
    /// Something to send, or nothing ever again. Only the writer waits.
    filled: Notify,
    /// Something was sent, or nothing ever will be.
    drained: Notify,
}

impl Outbox {
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

    /// Waits for room for a frame of a stream. Errors: `BrokenPipe` once nothing is sent any more.
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.bytes < LIMIT {
            return Poll::Ready(Ok(()));
        }
        let waker = context.waker();
        if !state.waiting.iter().any(|other| other.will_wake(waker)) {
            state.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Everything that waits to be sent, once there is something; `None` after `fail`. Says, too, that what was taken
    /// before has been sent. For the connection's writer.
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

    /// Waits until everything was sent, or nothing will be any more.
    pub async fn sent(&self) {
        self.until(|state| state.failed || (state.items.is_empty() && !state.writing))
            .await;
    }

    /// Waits while more is unsent than streams alone can make.
    pub async fn calm(&self) {
        self.until(|state| state.failed || state.bytes < FLOOD)
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

    /// The connection is gone: drops what waits and wakes all who do.
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

    /// Lets streams look again whether they may go on.
    fn wake(&self) {
        self.lock().wake_all();
    }
}

/// How the bytes of one stream are put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// DATA frames of this stream.
    Spdy(u32),
    /// Binary messages that begin with this channel's number.
    Binary(u8),
    /// Text messages that begin with this channel's digit, the rest in base64.
    Base64(u8),
}

/// The sending side of one stream.
pub struct Outflow {
    outbox: Arc<Outbox>,
    framing: Framing,
    ended: AtomicBool,
}

impl Outflow {
    /// A stream that may send, or one that the client opened for its own sending only.
    pub fn new(outbox: Arc<Outbox>, framing: Framing, may_send: bool) -> Arc<Outflow> {
        let ended = AtomicBool::new(!may_send);
        Arc::new(Outflow {
            outbox,
            framing,
            ended,
        })
    }

    /// Whether nothing more is sent.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Tells the client that no more comes; the second time nothing happens.
    pub fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel)
            && let Framing::Spdy(stream) = self.framing
        {
            self.outbox
                .push(Item::Bytes(super::spdy::frame::data(stream, b"", true)));
        }
        self.outbox.wake();
    }

    /// Ends the stream both ways at once; what is not SPDY just ends.
    pub fn reset(&self) {
        self.ended.store(true, Ordering::Release);
        if let Framing::Spdy(stream) = self.framing {
            let frame = super::spdy::frame::reset(stream, super::spdy::frame::ResetCode::Cancel);
            self.outbox.push(Item::Bytes(frame));
        }
        self.outbox.wake();
    }

    /// The client wants no more of it.
    pub fn cut(&self) {
        self.ended.store(true, Ordering::Release);
        self.outbox.wake();
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

    /// Sends a message though it may be empty, without waiting.
    pub fn say(&self, bytes: &[u8]) {
        self.outbox.push(self.item(bytes));
    }

    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        std::task::ready!(self.outbox.poll_room(context))?;
        // Ended between the two looks: its waker was missed.
        if self.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(FRAME);
        if taken > 0 && !self.outbox.push(self.item(&bytes[..taken])) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(taken))
    }
}

/// One stream as something to write to; dropping it ends the stream.
pub struct Sender(pub Arc<Outflow>);

impl tokio::io::AsyncWrite for Sender {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(context, bytes)
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's writer sends whatever there is.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.end();
    }
}
