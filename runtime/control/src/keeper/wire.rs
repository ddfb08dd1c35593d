//! The task of a connection: sends requests and dispatches answers and events.
//!
//! Started by [`super::Keeper::connect`]. Invariant: when the connection ends, every waiter gets an error.
//! It must not know what a request means.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::mpsc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::KeeperEvent;
use crate::frame::{Frame, Reader, Writer};
use crate::messages::{Answer, FromKeeper};
use coracle_spec::Exit;

/// An answer and its descriptors.
pub(super) type Reply = (Answer, Vec<OwnedFd>);
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>;
/// Waiters for the exits of execs, by the request that started them.
pub(super) type Ends = Arc<Mutex<HashMap<u64, oneshot::Sender<Exit>>>>;

/// Owns the connection: sends requests and dispatches answers and events until either side closes it.
pub(super) async fn run_connection(
    stream: UnixStream,
    mut requests: mpsc::UnboundedReceiver<(Frame, u64, oneshot::Sender<Reply>)>,
    events: mpsc::UnboundedSender<KeeperEvent>,
    ends: Ends,
) {
    let waiting = Waiting::default();
    let (mut reader, mut writer) = (Reader::default(), Writer::default());
    loop {
        let step = tokio::select! {
            next = requests.recv() => match next {
                Ok((frame, request, reply)) => {
                    let mut waiting = lock(&waiting);
                    // A keeper may never answer a request whose caller has given up.
                    waiting.retain(|_, reply| !reply.is_closed());
                    waiting.insert(request, reply);
                    drop(waiting);
                    writer.push(frame);
                    Ok(())
                }
                Err(_) => Err(io::ErrorKind::NotConnected.into()),
            },
            ready = stream.writable(), if !writer.is_empty() => {
                ready.and_then(|()| retry(stream.try_io(Interest::WRITABLE, || writer.flush(stream.as_fd()))).map(drop))
            }
            ready = stream.readable() => match ready.and_then(|()| retry(stream.try_io(Interest::READABLE, || reader.read(stream.as_fd())))) {
                Ok(Some(Some(frame))) => dispatch(frame, &waiting, &events, &ends),
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
    let _ = events.unbounded_send(KeeperEvent::Closed);
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

fn dispatch(
    frame: Frame,
    waiting: &Waiting,
    events: &mpsc::UnboundedSender<KeeperEvent>,
    ends: &Ends,
) -> io::Result<()> {
    match frame.message()? {
        FromKeeper::Answer { request, answer } => {
            if let Some(reply) = lock(waiting).remove(&request) {
                let _ = reply.send((answer, frame.fds));
            }
        }
        FromKeeper::Exited { container, exit } => {
            let _ = events.unbounded_send(KeeperEvent::Exited { container, exit });
        }
        FromKeeper::ExecEnded { request, exit } => {
            if let Some(pending) = lock(ends).remove(&request) {
                let _ = pending.send(exit);
            }
        }
    }
    Ok(())
}
