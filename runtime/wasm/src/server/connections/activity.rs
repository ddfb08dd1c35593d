//! What happens on one connection: its requests, for how long there was none, and the streams of HTTP/2.
//!
//! Called by [`super`], for each connection; who answers a request holds an [`Active`] meanwhile.
//! Invariants: a connection on which a request is under way is not idle; a request counts until its [`Active`] is dropped,
//! however it ends.
//! Not here: when a connection is closed, what a request is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::Notify;

use super::super::answers::{Answers, Taken};
use super::super::idle::Busy;

/// What happens on one connection.
pub(super) struct Activity {
    begun: Instant,
    requests: AtomicUsize,
    /// When the last request ended, in milliseconds since the beginning.
    ended: AtomicU64,
    /// What HTTP/2 holds of an answer is not taken.
    pub(super) is_stuck: Notify,
    /// A newcomer needs its room.
    pub(super) is_spared: Notify,
}

/// Runs the streams of one connection of HTTP/2.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) answers: Answers,
    pub(super) activity: Arc<Activity>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let own = self.clone();
        tokio::spawn(async move {
            // A stream that is dropped before its end is reset; after it, only the connection can be closed.
            let ended = AtomicBool::new(false);
            let work = async {
                stream.await;
                ended.store(true, Ordering::Relaxed);
            };
            let taken = own.answers.attend(work).await;
            if matches!(taken, Taken::GivenUp) && ended.load(Ordering::Relaxed) {
                own.activity.is_stuck.notify_one();
            }
        });
    }
}

/// A request that is under way on a connection.
pub(in crate::server) struct Active {
    activity: Arc<Activity>,
    busy: Busy,
}

impl Activity {
    /// Nothing has happened yet.
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            requests: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            is_stuck: Notify::new(),
            is_spared: Notify::new(),
        }
    }

    /// Counts a request.
    pub(super) fn enter(self: &Arc<Self>, busy: Busy) -> Active {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Active {
            activity: Arc::clone(self),
            busy,
        }
    }

    /// For how long nothing has been under way.
    pub(super) fn idle(&self) -> Duration {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let ended = Duration::from_millis(self.ended.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(ended)
    }
}

impl Active {
    /// The request has an answer with this status.
    pub(in crate::server) fn answered(&self, status: StatusCode) {
        self.busy.answered(status);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let activity = &self.activity;
        let now = u64::try_from(activity.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        activity.ended.store(now, Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
