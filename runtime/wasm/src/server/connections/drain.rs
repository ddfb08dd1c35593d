//! What a server does from a stop signal to its end: it answers what is under way, and ends the guests that are not done
//! when the grace period is nearly over.
//!
//! Called by [`Connections::serve`]. Invariants: nothing new is taken but what the kernel had accepted already; where the
//! sender of the signal said when it kills, this returns before.
//! Not here: what a guest is told, who kills.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::Connections;
use crate::end::End;
use crate::stop;

/// Most time before the end of the grace period that is kept for ending guests and saying so; at most a fifth of the
/// period.
const MARGIN: Duration = Duration::from_millis(500);

impl Connections {
    /// Answers what is under way and what the kernel has accepted already, and lets nobody else in.
    pub(super) async fn drain(
        self: Arc<Self>,
        listener: TcpListener,
        closing: &watch::Sender<bool>,
    ) -> End {
        let closed = closing.subscribe();
        // Their clients take themselves to be connected.
        while let Some((stream, room)) = self.accepted_already(&listener) {
            self.start(stream, room, &closed);
        }
        // The process that holds the socket of a function that may sleep has it, too.
        let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Read);
        drop(listener);
        let _ = closing.send(true);
        let Some(grace) = stop::grace() else {
            self.finished().await;
            return End::Code(0);
        };
        let margin = MARGIN.min(grace / 5);
        match timeout(grace.saturating_sub(margin), self.finished()).await {
            Ok(()) => End::Code(0),
            Err(_) => self.end_guests(margin / 2).await,
        }
    }

    /// Waits until no connection is open and no guest has anything to do.
    async fn finished(&self) {
        let all = self.settings.limits.max_connections;
        let _ = self.room.acquire_many(all).await;
        self.requests.finished().await;
    }

    /// Ends the guests that compute, each by a trap, and gives them `patience` to say so.
    async fn end_guests(&self, patience: Duration) -> End {
        let unanswered = self.requests.under_way();
        let open = (self.settings.limits.max_connections as usize)
            .saturating_sub(self.room.available_permits());
        self.requests.end_guests();
        let _ = timeout(patience, self.requests.finished()).await;
        End::Explained(
            128 + stop::signal(),
            format!(
                "its grace period was over with {unanswered} requests under way and {open} connections open, and their guests were ended: raise terminationGracePeriodSeconds, or lower http.coracle.dev/deadline-seconds"
            ),
        )
    }

    fn accepted_already(
        &self,
        listener: &TcpListener,
    ) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        use std::task::{Context, Poll, Waker};
        let room = Arc::clone(&self.room).try_acquire_owned().ok()?;
        match listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok((stream, _))) => Some((stream, room)),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }
}
