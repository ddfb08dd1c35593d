//! A response's body that fails when its server pauses for too long.
//!
//! Invariant: the timer runs only while the guest waits for the next part. The caller sets the pause.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::Error;

/// The body and its timeout.
pub(super) struct Timed {
    body: Incoming,
    pause: Duration,
    /// Set while the guest waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    /// Wraps `body`, whose frames may be `pause` apart.
    pub(super) fn new(body: Incoming, pause: Duration) -> Self {
        Self {
            body,
            pause,
            timer: None,
        }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(part) = Pin::new(&mut self.body).poll_frame(context) {
            self.timer = None;
            return Poll::Ready(part.map(|part| part.map_err(super::broken)));
        }
        let until = Instant::now() + self.pause;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        timer
            .as_mut()
            .poll(context)
            .map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
