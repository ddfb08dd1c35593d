//! A guest's standard streams: the pipes or the terminal that its process started with.
//!
//! Granted by [`super::host`]. Invariants: each write of the guest goes to the kernel at once, nothing is buffered in
//! this process; a read waits on its own thread, so that it blocks neither other calls nor the stop.
//! It must not know who is at the other end.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes that a guest may write at once.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// Standard input.
#[derive(Clone, Copy)]
pub(super) struct Input {
    /// Whether it is a terminal.
    pub(super) tty: bool,
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.tty
    }
}

impl StdinStream for Input {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        tokio::io::stdin().p2_stream()
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncRead + Send + Sync> {
        tokio::io::stdin().async_stream()
    }
}

/// Standard output or error.
#[derive(Clone, Copy)]
pub(super) struct Output {
    stream: Stream,
    tty: bool,
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

impl Output {
    /// Standard output, a terminal if `tty`.
    pub(super) fn out(tty: bool) -> Self {
        let stream = Stream::Out;
        Self { stream, tty }
    }

    /// Standard error, a terminal if `tty`.
    pub(super) fn err(tty: bool) -> Self {
        let stream = Stream::Err;
        Self { stream, tty }
    }

    fn fd(self) -> BorrowedFd<'static> {
        match self.stream {
            // Both descriptors stay open for the life of a guest.
            Stream::Out => coracle_sys::standard(1),
            Stream::Err => coracle_sys::standard(2),
        }
    }

    fn put(self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(self.fd().as_fd(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::INTR) if super::stop::stopping() => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Sink for Output {
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        Output::put(*self, bytes)
    }

    fn is_terminal(&self) -> bool {
        self.tty
    }
}

/// Where a guest's output goes, or the server's own.
pub(super) trait Sink: Send + Sync + Unpin + 'static {
    /// Writes all of `bytes`. Errors: nobody reads any more, or the guest is being stopped.
    fn put(&self, bytes: &[u8]) -> io::Result<()>;

    /// Whether it is a terminal.
    fn is_terminal(&self) -> bool {
        false
    }
}

/// A sink as wasmtime-wasi writes to it: every write is whole when it returns, so that there is never anything to wait for.
#[derive(Clone)]
pub(super) struct Writer<S>(pub(super) S);

impl<S: Sink> IsTerminal for Writer<S> {
    fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }
}

impl<S: Sink + Clone> StdoutStream for Writer<S> {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(Writer(self.0.clone()))
    }
}

impl<S: Sink> OutputStream for Writer<S> {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.0.put(&bytes).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(e.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl<S: Sink> Pollable for Writer<S> {
    async fn ready(&mut self) {}
}

impl<S: Sink> tokio::io::AsyncWrite for Writer<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.put(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
