//! What the library reads for one message before it is whole, counted.
//!
//! Called by: [`super`]. Invariant: a message for which the node's sessions have no memory together breaks its
//! connection; nobody waits for memory with a message half read.
//! Must not know: messages.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::connection::BoxedIo;
use super::super::receive::RecvBudget;

/// A connection whose bytes are counted as those of a message.
pub struct Metered {
    io: BoxedIo,
    budget: Arc<RecvBudget>,
}

impl Metered {
    /// Nothing is read yet.
    pub fn new(io: BoxedIo, budget: Arc<RecvBudget>) -> Metered {
        Metered { io, budget }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, into))?;
        let read = into.filled().len() - before;
        if self.budget.add_to_message(read) {
            return Poll::Ready(Ok(()));
        }
        let text = "all sessions of the node together hold too much for another long message";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, text)))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
