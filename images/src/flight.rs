//! Joins pulls that ask for the same.
//!
//! Place in the flow: [`crate::Images::pull`] lands here; a pull that nobody runs yet is started.
//! Invariants: callers with the same reference, credentials and platform wait for one pull, share its end, and
//! the last of them to leave stops it.
//! Not here: how a pull is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::endpoint::Credentials;
use crate::error::Error;
use crate::image::Image;
use crate::manifest::PlatformPreference;
use crate::pull::Pull;
use crate::reference::ImageRef;
use crate::store::Inner;

/// Pulls under way at a time; further ones wait. It bounds what all of them hold in memory.
static TURNS: Semaphore = Semaphore::const_new(64);

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// The reference as written by whoever wants the image.
    pub reference: String,
    /// What to show the registry; `None` pulls anonymously.
    pub auth: Option<Credentials>,
    /// Which entry of an index.
    pub platform: PlatformPreference,
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

type Outcome = Result<Arc<Image>, Arc<Error>>;
type Key = (ImageRef, Option<Credentials>, PlatformPreference);

/// The pulls that somebody waits for.
#[derive(Default)]
pub(crate) struct Flights {
    flying: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Outcome>>>>,
}

impl Flights {
    /// The running pull for `key`, or a new one made by `start`.
    fn join(
        &self,
        key: Key,
        start: impl FnOnce() -> BoxFuture<'static, Outcome>,
    ) -> Shared<BoxFuture<'static, Outcome>> {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        flying.retain(|_, flight| flight.upgrade().is_some());
        let running = flying
            .get(&key)
            .and_then(WeakShared::upgrade)
            .filter(|flight| flight.peek().is_none());
        running.unwrap_or_else(|| {
            let flight = start().shared();
            if let Some(weak) = flight.downgrade() {
                flying.insert(key, weak);
            }
            flight
        })
    }
}

/// Pulls, or joins a pull. Errors: [`Error::Name`], or [`Error::Pull`] with the cause.
pub(crate) async fn pull(inner: &Arc<Inner>, request: PullRequest) -> Result<Arc<Image>, Error> {
    let reference: ImageRef = request.reference.parse()?;
    let key = (reference.clone(), request.auth.clone(), request.platform);
    let flight = inner.flights.join(key, || {
        let (inner, reference) = (inner.clone(), reference.clone());
        async move {
            // Never closed, so an error cannot be.
            let _turn = TURNS.acquire().await.ok();
            let mut pull = Pull::new(inner, reference, &request)?;
            let outcome = pull.run().await;
            if let Err(error) = &outcome {
                pull.clean_up(error).await;
            }
            outcome.map_err(Arc::new)
        }
        .boxed()
    });
    flight.await.map_err(|cause| Error::Pull {
        reference: reference.to_string(),
        registry: reference.registry().to_owned(),
        cause,
    })
}
