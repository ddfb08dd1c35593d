//! One upgraded connection as its session sees it: a session can wait until it closes or becomes idle, and can close it
//! in order.
//!
//! ```text
//! spdy | websocket --reader, writer--> Connection <--closed, finish-- remote | forward
//! ```
//! Invariants: when either reader or writer ends, the connection ends; dropping it closes the socket at once, which a
//! client sees as a reset; `finish` sends everything that was queued before it.
//! Must not know: frames.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::receive::{RecvBudget, RecvSink};
use super::send::{Item, SendQueue};

/// How long a client may take to read the rest and close, once its session has ended. If we closed first, the kernel
/// would discard data still in flight.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a reader that waits for buffer space checks whether its client is still connected.
const PEER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A bidirectional byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An upgraded connection.
pub type BoxedIo = Box<dyn Duplex>;

/// When a connection last carried a frame.
pub struct Activity {
    began: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Arc<Activity> {
        Arc::new(Activity {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        })
    }

    /// Records that a frame was carried now.
    pub fn touch(&self) {
        self.last_ms
            .store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until nothing was carried for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let due = self.began + last + limit;
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The client's socket, to check whether the client closed it while nothing is read.
#[derive(Clone, Default)]
pub struct Peer(Option<Arc<OwnedFd>>);

impl Peer {
    /// Takes a duplicate of the socket.
    pub fn new(socket: OwnedFd) -> Peer {
        Peer(Some(Arc::new(socket)))
    }

    /// Whether it has closed or reset the connection.
    fn is_gone(&self) -> bool {
        let Some(socket) = &self.0 else {
            return false;
        };
        let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
        let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut polled, Some(&now)), Ok(1..)) && polled[0].revents().intersects(over)
    }

    /// Waits until `sink` has room; false when the client closed the connection meanwhile.
    pub async fn room(&self, sink: &RecvSink) -> bool {
        while !sink.has_room() {
            if tokio::time::timeout(PEER_CHECK_INTERVAL, sink.room())
                .await
                .is_err()
                && self.is_gone()
            {
                return false;
            }
        }
        true
    }
}

/// An upgraded connection before its session begins.
pub struct Upgraded {
    /// The byte stream.
    pub io: BoxedIo,
    /// The client's socket.
    pub peer: Peer,
    /// How long it may be idle.
    pub idle: Duration,
    /// What it may hold.
    pub budget: Arc<RecvBudget>,
}

/// State that reader and writer of a connection share with their session.
#[derive(Clone)]
pub struct Shared {
    /// Frames to be sent.
    pub send_queue: Arc<SendQueue>,
    /// When a frame was last carried.
    pub activity: Arc<Activity>,
    /// The client's socket.
    pub peer: Peer,
}

impl Shared {
    /// State of a new connection.
    pub fn new(peer: Peer) -> Shared {
        Shared {
            send_queue: Arc::default(),
            activity: Activity::new(),
            peer,
        }
    }
}

/// Runs the reader or the writer of a connection; when it ends, so does the other one.
async fn run_half(
    work: impl Future<Output = ()>,
    send_queue: Arc<SendQueue>,
    ended: watch::Sender<bool>,
) {
    work.await;
    send_queue.fail();
    ended.send_replace(true);
}

/// A connection with a running reader and writer.
pub struct Connection {
    shared: Shared,
    last_item: Option<Item>,
    idle: Duration,
    over: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Runs `reader` and `writer`. `last_item` is sent last to a client whose session ended; `idle` is how long the
    /// connection may be idle.
    pub fn start(
        shared: Shared,
        idle: Duration,
        last_item: Option<Item>,
        reader: impl Future<Output = ()> + Send + 'static,
        writer: impl Future<Output = ()> + Send + 'static,
    ) -> Connection {
        let (ended, over) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(run_half(
            reader,
            Arc::clone(&shared.send_queue),
            ended.clone(),
        ));
        tasks.spawn(run_half(writer, Arc::clone(&shared.send_queue), ended));
        Connection {
            shared,
            last_item,
            idle,
            over,
            _tasks: tasks,
        }
    }

    /// Waits until the client has closed the connection or was idle for too long; returns which, for the log.
    pub async fn closed(&self) -> &'static str {
        let mut over = self.over.clone();
        tokio::select! {
            // An error means that the task was aborted, which is an end, too.
            _ = over.wait_for(|over| *over) => "the client closed the connection",
            () = self.shared.activity.idle(self.idle) => "the connection was idle for too long",
        }
    }

    /// Waits until everything was sent and the client has closed, at most [`CLOSE_TIMEOUT`].
    pub async fn finish(self) {
        if let Some(item) = self.last_item.clone() {
            self.shared.send_queue.push(item);
        }
        let closed = async {
            self.shared.send_queue.sent().await;
            self.closed().await;
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::debug!("the client did not close a session that had ended");
        }
    }
}
