//! The connections of the admin socket: not more than some.
//!
//! Called by: the server. Invariants: whoever connects while there are [`MOST`] is closed at once, and can tell; those that are there
//! keep their places until they end; a daemon without free descriptors does not spin.
//! Must not know: requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

/// Connections at a time: commands of operators, and those that follow events.
const MOST: usize = 64;
/// The pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(500);
/// How long nothing more is logged about connections that are too many.
const QUIET: Duration = Duration::from_secs(60);

/// A connection with its place.
pub(super) struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

/// The connections of `listener`. tonic would try again at once where accept(2) fails, most likely for lack of descriptors.
pub(super) fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let accepting = Accepting {
        listener,
        places: Arc::new(Semaphore::new(MOST)),
        warned: None,
    };
    stream::unfold(accepting, |mut accepting| async move {
        let connection = accepting.next().await;
        Some((Ok(connection), accepting))
    })
}

struct Accepting {
    listener: UnixListener,
    places: Arc<Semaphore>,
    /// When it was last logged that there are too many.
    warned: Option<Instant>,
}

impl Accepting {
    async fn next(&mut self) -> Connection {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "no connection to the admin socket can be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Connection {
                    stream,
                    _place: place,
                };
            }
            if self.warned.is_none_or(|at| at.elapsed() >= QUIET) {
                tracing::warn!(
                    most = MOST,
                    "a connection to the admin socket was closed at once, and so are others until some of those that are there end"
                );
                self.warned = Some(Instant::now());
            }
            // Others have a turn, however fast somebody connects.
            tokio::task::yield_now().await;
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Read as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{self, SocketAddr};

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_bound_are_closed_and_the_others_keep_their_places() {
        let name = format!("coracle-admin-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = net::UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut incoming = Box::pin(incoming(UnixListener::from_std(listener).unwrap()));
        let connect = || {
            let client = net::UnixStream::connect_addr(&address).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        };
        let mut clients: Vec<_> = (0..MOST + 6).map(|_| connect()).collect();
        let mut accepted = Vec::new();
        let pause = Duration::from_millis(200);
        while let Ok(Some(connection)) = tokio::time::timeout(pause, incoming.next()).await {
            accepted.push(connection.unwrap());
        }
        assert_eq!(accepted.len(), MOST);
        let is_closed = |client: &mut net::UnixStream| matches!(client.read(&mut [0]), Ok(0));
        let closed: Vec<bool> = clients.iter_mut().map(is_closed).collect();
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 6);
        assert!(closed[MOST..].iter().all(|closed| *closed), "{closed:?}");
        // A place that is given up is the next one's.
        accepted.pop();
        let mut late = connect();
        let next = tokio::time::timeout(pause, incoming.next()).await;
        assert!(next.is_ok() && !is_closed(&mut late));
    }
}
