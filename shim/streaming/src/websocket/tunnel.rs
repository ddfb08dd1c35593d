//! A byte stream in WebSocket messages: each binary message is a piece of it.
//!
//! Called by: [`super::serve_tunnel`], for SPDY inside. Invariant: pieces may have any size; a text message is an
//! error.
//! Must not know: SPDY.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::super::connection::BoxedIo;
use super::super::receive::RecvBudget;
use super::channels;

/// A WebSocket as a bidirectional byte stream.
pub struct Tunnel {
    socket: WebSocketStream<BoxedIo>,
    piece: Bytes,
    budget: Arc<RecvBudget>,
}

impl Tunnel {
    /// Over an open WebSocket whose messages `budget` counts.
    pub fn new(socket: WebSocketStream<BoxedIo>, budget: Arc<RecvBudget>) -> Tunnel {
        Tunnel {
            socket,
            piece: Bytes::new(),
            budget,
        }
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(piece))) => self.piece = piece,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Ok(other)) => self.budget.take_from_message(channels::on_the_wire(&other)),
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.piece.len().min(into.remaining());
        into.put_slice(&self.piece.split_to(count));
        match self.piece.is_empty() {
            true => self.budget.end_message(),
            false => self.budget.take_from_message(count),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(context)).map_err(failed)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        socket.start_send(message).map_err(failed)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_flush(context)
            .map_err(failed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_close(context)
            .map_err(failed)
    }
}
