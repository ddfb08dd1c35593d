//! Standard output and error of instances that run at the same time: each line goes out whole.
//!
//! Called by what a guest writes and by the server's own messages. A line is kept until its end has come; the rest
//! of an instance's last line goes out with the instance.
//! Invariants: one line is one write under one lock, so that no two interleave; what is kept of one instance is bounded.
//! Not here: who reads the streams, time stamps.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::streams::Output;

/// Longest line that is kept together; a longer one becomes several. Bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// One of the two streams, shared by all instances.
#[derive(Clone)]
pub(super) struct Stream(Arc<Mutex<Box<dyn Sink>>>);

/// Where lines go.
pub(super) trait Sink: Send {
    /// Writes all of `bytes`. Errors: nobody reads any more, or the guest is being stopped.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for Output {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        Output::put(*self, bytes)
    }
}

impl Stream {
    /// A stream that ends in `sink`.
    pub(super) fn new(sink: impl Sink + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(sink))))
    }

    /// Writes one line of the server's own. What cannot be written is lost: there is nobody to tell.
    pub(super) fn line(&self, text: &str) {
        let _ = self.put(format!("{text}\n").as_bytes());
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(bytes)
    }

    /// The same stream for one more instance, with a line of its own.
    pub(super) fn of_instance(&self) -> Lines {
        Lines(Arc::new(Mutex::new(Begun {
            stream: self.clone(),
            text: Vec::new(),
        })))
    }
}

/// A stream as one instance has it; all handles of the instance share the line that it has begun.
#[derive(Clone)]
pub(super) struct Lines(Arc<Mutex<Begun>>);

struct Begun {
    stream: Stream,
    text: Vec<u8>,
}

impl Begun {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.keep(line)?;
            self.put()?;
        }
        self.keep(bytes)
    }

    /// Adds to the line, and ends it where it has become too long.
    fn keep(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.text.len() + bytes.len() > MAX_LINE_BYTES {
            let (fits, rest) = bytes.split_at(MAX_LINE_BYTES - self.text.len());
            bytes = rest;
            self.text.extend_from_slice(fits);
            self.end()?;
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.text.last().is_some_and(|byte| *byte != b'\n') {
            self.text.push(b'\n');
        }
        self.put()
    }

    fn put(&mut self) -> io::Result<()> {
        let put = self.stream.put(&self.text);
        self.text.clear();
        put
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Lines {
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.write(bytes)
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.put(&bytes).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(e.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl tokio::io::AsyncWrite for Lines {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.put(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
