//! One upgraded connection as its session sees it: it lives, it is idle, it is gone, or it is to be ended in order.
//!
//! ```text
//! spdy | websocket --reader, writer--> Link <--gone? finish-- remote | forward
//! ```
//! Invariants: whichever of reader and writer ends first ends the connection; dropping a link drops its connection at
//! once, which a client sees as a reset; `finish` loses nothing that was sent before it.
//! Not here: frames.

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

use super::inbox::Feed;
use super::outbox::{Item, Outbox};

/// How long a client may take to read the rest and close, once its session has ended. Closing before the client does
/// would make the kernel throw away what is still on its way.
pub const FINISH: Duration = Duration::from_secs(300);
/// How often a reader that must wait for room looks whether its client is still there.
const GLANCE: Duration = Duration::from_secs(1);

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An upgraded connection.
pub type Wire = Box<dyn Duplex>;

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

    /// It carries one now.
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

/// The client's end of the TCP connection, to be asked whether it is closed while nothing can be read.
#[derive(Clone, Default)]
pub struct Peer(Option<Arc<OwnedFd>>);

impl Peer {
    /// Of a socket's duplicate.
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

    /// Waits until `feed` has room; false when the client went meanwhile.
    pub async fn room(&self, feed: &Feed) -> bool {
        while !feed.has_room() {
            if tokio::time::timeout(GLANCE, feed.room()).await.is_err() && self.is_gone() {
                return false;
            }
        }
        true
    }
}

/// An upgraded connection before its session begins.
pub struct Connection {
    /// Its bytes.
    pub wire: Wire,
    /// The client's socket.
    pub peer: Peer,
    /// How long nothing need be carried.
    pub idle: Duration,
}

/// What the two halves of a connection share with their session.
#[derive(Clone)]
pub struct Common {
    /// What waits to be sent.
    pub outbox: Arc<Outbox>,
    /// When something was carried.
    pub activity: Arc<Activity>,
    /// The client's socket.
    pub peer: Peer,
}

impl Common {
    /// Of a new connection.
    pub fn new(peer: Peer) -> Common {
        Common {
            outbox: Arc::default(),
            activity: Activity::new(),
            peer,
        }
    }
}

/// Runs one half of a connection, whose end is the end of both.
async fn half(work: impl Future<Output = ()>, outbox: Arc<Outbox>, ended: watch::Sender<bool>) {
    work.await;
    outbox.fail();
    ended.send_replace(true);
}

/// A connection that is being read and written.
pub struct Link {
    common: Common,
    farewell: Option<Item>,
    idle: Duration,
    over: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Link {
    /// Runs `reader` and `writer`. `farewell` is the last thing sent to a client whose session ended; `idle` is how long
    /// nothing need be carried.
    pub fn start(
        common: Common,
        idle: Duration,
        farewell: Option<Item>,
        reader: impl Future<Output = ()> + Send + 'static,
        writer: impl Future<Output = ()> + Send + 'static,
    ) -> Link {
        let (ended, over) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(half(reader, Arc::clone(&common.outbox), ended.clone()));
        tasks.spawn(half(writer, Arc::clone(&common.outbox), ended));
        Link {
            common,
            farewell,
            idle,
            over,
            _tasks: tasks,
        }
    }

    /// Waits until the client is gone or has been idle for too long; says which.
    pub async fn gone(&self) -> &'static str {
        let mut over = self.over.clone();
        tokio::select! {
            // An error means that the task was aborted, which is an end, too.
            _ = over.wait_for(|over| *over) => "the client is gone",
            () = self.common.activity.idle(self.idle) => "nothing was carried for too long",
        }
    }

    /// Waits until everything was sent and the client has closed, but not for ever.
    pub async fn finish(self) {
        if let Some(item) = self.farewell.clone() {
            self.common.outbox.push(item);
        }
        let closed = async {
            self.common.outbox.sent().await;
            self.gone().await;
        };
        if tokio::time::timeout(FINISH, closed).await.is_err() {
            tracing::debug!("the client did not close a session that had ended");
        }
    }
}
