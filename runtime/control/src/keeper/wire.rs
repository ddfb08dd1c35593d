//! The task of a connection: sends requests and dispatches answers and events.
//!
//! Started by [`super::Keeper::connect`]. Invariants: when the connection ends, every waiter gets an error; whatever a keeper
//! sends, a bounded part of it is in memory; a request keeps its place among those that wait until all of it is sent.
//! It must not know what a request means.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::mpsc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::KeeperEvent;
use crate::frame::{Frame, Reader, Writer};
use crate::messages::{Answer, FromKeeper};
use coracle_spec::Exit;
use coracle_spec::error::{Error, Kind, Result};

/// An answer and its descriptors.
pub(super) type Reply = (Answer, Vec<OwnedFd>);
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>;
/// Waiters for the exits of execs, by the request that started them.
pub(super) type Ends = Arc<Mutex<HashMap<u64, oneshot::Sender<Exit>>>>;

/// Most KiB of requests that wait for a keeper to take them. It takes each within microseconds, unless it hangs.
const MAX_UNSENT_KIB: usize = 4096;
/// What a request counts at least, for its descriptors: 256 may wait.
const LEAST_KIB: usize = 16;

/// Room for the requests that a keeper has not taken yet; a clone is the same room.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_UNSENT_KIB)))
    }
}

impl Room {
    /// A place for a request of so many bytes. Errors: [`Kind::Exhausted`] when there is none, because the keeper takes
    /// nothing.
    pub(super) fn place(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        // A frame is short: MAX_BODY.
        let kib = bytes.div_ceil(1024).max(LEAST_KIB);
        let place = Arc::clone(&self.0).try_acquire_many_owned(kib as u32);
        place.map_err(|_| {
            let taken = MAX_UNSENT_KIB - self.0.available_permits();
            let text = format!(
                "the pod's keeper takes no requests: {taken} of at most {MAX_UNSENT_KIB} KiB wait for it, and {kib} KiB more \
                 do not fit; it hangs, and stopping the pod ends it"
            );
            Error::new(Kind::Exhausted, text)
        })
    }
}

/// A request on its way to the keeper.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) frame: Frame,
    /// Its number.
    pub(super) request: u64,
    /// Who waits for the answer.
    pub(super) reply: oneshot::Sender<Reply>,
    /// Its place among what is not sent yet.
    pub(super) place: OwnedSemaphorePermit,
}

/// Owns the connection: sends requests and dispatches answers and events until either side closes it.
pub(super) async fn run_connection(
    stream: UnixStream,
    mut requests: mpsc::UnboundedReceiver<Sent>,
    mut events: mpsc::Sender<KeeperEvent>,
    ends: Ends,
) {
    let waiting = Waiting::default();
    let (mut reader, mut writer) = (Reader::default(), Writer::default());
    // Of the frames that the writer has, in their order.
    let mut places = VecDeque::new();
    loop {
        let step = tokio::select! {
            next = requests.recv() => match next {
                Ok(sent) => {
                    let mut waiting = lock(&waiting);
                    // A keeper may never answer a request whose caller has given up.
                    waiting.retain(|_, reply| !reply.is_closed());
                    waiting.insert(sent.request, sent.reply);
                    drop(waiting);
                    writer.push(sent.frame);
                    places.push_back(sent.place);
                    Ok(())
                }
                Err(_) => Err(io::ErrorKind::NotConnected.into()),
            },
            ready = stream.writable(), if !writer.is_empty() => {
                let flushed = ready.and_then(|()| retry(stream.try_io(Interest::WRITABLE, || writer.flush(stream.as_fd()))));
                places.drain(..places.len() - writer.len());
                flushed.map(drop)
            }
            ready = stream.readable() => match ready.and_then(|()| retry(stream.try_io(Interest::READABLE, || reader.read(stream.as_fd())))) {
                Ok(Some(Some(frame))) => dispatch(frame, &waiting, &mut events, &ends),
                Ok(Some(None)) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(None) => Ok(()),
                Err(e) => Err(e),
            },
        };
        if step.is_err() {
            break;
        }
    }
    // Dropping the map gives every waiter an error.
    lock(&waiting).clear();
    lock(&ends).clear();
    // The end of a full queue says the same.
    let _ = events.try_send(KeeperEvent::Closed);
}

/// `None` if the socket was not ready.
fn retry<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}

/// Locks the shared map.
pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Errors: it is no message, or nobody takes the keeper's events any more.
fn dispatch(
    frame: Frame,
    waiting: &Waiting,
    events: &mut mpsc::Sender<KeeperEvent>,
    ends: &Ends,
) -> io::Result<()> {
    match frame.message()? {
        FromKeeper::Answer { request, answer } => {
            if let Some(reply) = lock(waiting).remove(&request) {
                let _ = reply.send((answer, frame.fds));
            }
        }
        FromKeeper::Exited { container, exit } => {
            let exit = exit.shortened();
            let sent = events.try_send(KeeperEvent::Exited { container, exit });
            if sent.is_err_and(|error| error.is_full()) {
                tracing::warn!("a keeper sends more events than are taken: hung up on it");
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
        }
        FromKeeper::ExecEnded { request, exit } => {
            if let Some(pending) = lock(ends).remove(&request) {
                let _ = pending.send(exit);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use coracle_spec::id::ContainerId;
    use coracle_spec::{Cause, MAX_CAUSE_BYTES, MAX_MESSAGE_BYTES};

    use super::super::{Keeper, MAX_EVENTS};
    use super::*;
    use crate::messages::Request;

    fn exited(text: &str) -> Frame {
        let exit = Exit {
            code: 1,
            signal: None,
            finished_at: 1,
            cause: Cause::Trap(text.to_owned()),
            message: text.to_owned(),
        };
        let container = ContainerId::random().unwrap();
        Frame::pack(&FromKeeper::Exited { container, exit }, Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn a_keeper_that_sends_events_without_end_is_hung_up_on() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_requests, queue) = mpsc::unbounded();
        let (events, mut received) = mpsc::channel(MAX_EVENTS);
        tokio::spawn(run_connection(ours, queue, events, Ends::default()));
        let flood = async {
            let mut writer = Writer::default();
            loop {
                writer.push(exited(&"x".repeat(10_000)));
                while let Err(error) = writer.flush(theirs.as_fd()) {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
        };
        // Nobody takes them meanwhile, as when the driver waits for the disk.
        tokio::time::timeout(Duration::from_secs(60), flood)
            .await
            .unwrap();
        let mut count = 0;
        while let Ok(event) = received.recv().await {
            if let KeeperEvent::Exited { exit, .. } = event {
                count += 1;
                assert_eq!(exit.message.len(), MAX_MESSAGE_BYTES);
                assert!(matches!(exit.cause, Cause::Trap(text) if text.len() == MAX_CAUSE_BYTES));
            }
        }
        assert!((MAX_EVENTS..MAX_EVENTS + 8).contains(&count), "{count}");
    }

    #[tokio::test]
    async fn requests_to_a_keeper_that_takes_none_are_bounded_and_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (requests, queue) = mpsc::unbounded();
        let (events, _received) = mpsc::channel(MAX_EVENTS);
        let connection = tokio::spawn(run_connection(ours, queue, events, Ends::default()));
        let keeper = Keeper {
            requests,
            room: Room::default(),
            numbers: Arc::default(),
            protocol: Arc::default(),
            ends: Ends::default(),
        };
        let ask = || keeper.request(Request::Leave, Vec::new(), Duration::from_millis(1));
        let mut waiting = 0;
        let refused = loop {
            let error = ask().await.unwrap_err();
            match error.kind() {
                Kind::Deadline if waiting < 100_000 => waiting += 1,
                _ => break error,
            }
        };
        assert_eq!(refused.kind(), Kind::Exhausted, "{refused} after {waiting}");
        let text = refused.to_string();
        assert!(text.contains("4096 of at most 4096 KiB wait"), "{text}");
        // It goes on: what waited is sent, and there is room again.
        let mut reader = Reader::default();
        let has_room = async {
            while keeper.room.0.available_permits() < MAX_UNSENT_KIB {
                while reader.read(theirs.as_fd()).is_ok() {}
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), has_room)
            .await
            .unwrap();
        let error = ask().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline, "{error}");
        drop(keeper);
        connection.await.unwrap();
    }
}
