//! Joins pulls that ask for the same.
//!
//! Place in the flow: [`crate::Images::pull`] asks here; a pull that nobody runs yet is started.
//! Invariants: callers with the same reference, credentials, platform and signature policy wait for one pull, share its end, and
//! the last of them to leave stops it.
//! Not here: how a pull is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};

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
    /// The namespace of the pod that needs the image, whose signature policy counts; empty if there is none.
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

/// The running pulls.
#[derive(Default)]
pub(crate) struct InFlightPulls {
    pulls: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, PullResult>>>>,
}

impl InFlightPulls {
    /// The running pull for `key`, or a new one made by `start`.
    pub(crate) fn join(
        &self,
        key: Key,
        start: impl FnOnce() -> BoxFuture<'static, PullResult>,
    ) -> Shared<BoxFuture<'static, PullResult>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, pull| pull.upgrade().is_some());
        let running = pulls
            .get(&key)
            .and_then(WeakShared::upgrade)
            .filter(|pull| pull.peek().is_none());
        running.unwrap_or_else(|| {
            let pull = start().shared();
            if let Some(weak) = pull.downgrade() {
                pulls.insert(key, weak);
            }
            pull
        })
    }
}
