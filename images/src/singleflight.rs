//! Joins pulls that ask for the same.
//!
//! Place in the flow: [`crate::Images::pull`] asks here; a pull that nobody runs yet is started.
//! Invariants: callers with the same reference, credentials, platform and signature policy wait for one pull, share its end, and
//! the last of them to leave stops it.
//! Not here: how a pull is done.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, Either, FutureExt as _, Shared, WeakShared, select};
use tokio::sync::Notify;

use crate::endpoint::Credentials;
use crate::error::Error;
use crate::image::Image;
use crate::manifest::PlatformPreference;
use crate::reference::ImageRef;

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// The reference as written by the user.
    pub reference: String,
    /// Credentials for the registry; `None` pulls anonymously.
    pub auth: Option<Credentials>,
    /// Which entry of an index.
    pub platform: PlatformPreference,
    /// The namespace of the pod that needs the image, whose signature policy and share count; empty if there is none.
    pub namespace: String,
}

impl PullRequest {
    /// An anonymous pull of `reference`.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            ..Self::default()
        }
    }
}

pub(crate) type PullResult = Result<Arc<Image>, Arc<Error>>;
/// What two pulls must have in common to be one. The last is the namespace, where namespaces have policies of their own.
pub(crate) type Key = (ImageRef, Option<Credentials>, PlatformPreference, String);

/// A pull that is running.
pub(crate) type Running = Shared<BoxFuture<'static, PullResult>>;

/// The running pulls.
#[derive(Default)]
pub(crate) struct InFlightPulls {
    pulls: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, PullResult>>>>,
    /// Told of each new one.
    started: Notify,
}

impl InFlightPulls {
    /// Waits until a pull for `key` is running, or for `turn`.
    pub(crate) async fn started_before<T>(
        &self,
        key: &Key,
        turn: impl Future<Output = T>,
    ) -> Either<Running, T> {
        let mut turn = pin!(turn);
        loop {
            let started = pin!(self.started.notified());
            if let Some(running) = self.lock().get(key).and_then(running) {
                return Either::Left(running);
            }
            if let Either::Left((turn, _)) = select(&mut turn, started).await {
                return Either::Right(turn);
            }
        }
    }

    /// The running pull for `key`, or a new one made by `start`.
    pub(crate) fn join(
        &self,
        key: Key,
        start: impl FnOnce() -> BoxFuture<'static, PullResult>,
    ) -> Running {
        let mut pulls = self.lock();
        pulls.retain(|_, pull| pull.upgrade().is_some());
        if let Some(running) = pulls.get(&key).and_then(running) {
            return running;
        }
        let pull = start().shared();
        if let Some(weak) = pull.downgrade() {
            pulls.insert(key, weak);
        }
        drop(pulls);
        self.started.notify_waiters();
        pull
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, WeakShared<BoxFuture<'static, PullResult>>>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pull, if somebody waits for it and it has not ended.
fn running(pull: &WeakShared<BoxFuture<'static, PullResult>>) -> Option<Running> {
    pull.upgrade().filter(|pull| pull.peek().is_none())
}
