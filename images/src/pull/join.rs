//! Starts pulls, or joins those that are under way.
//!
//! Place in the flow: the daemon calls [`Images::pull`]; who waits for what is kept by [`crate::flight`].
//! Invariant: a bounded number of pulls is under way at a time. Not here: how a pull is done.

use std::sync::Arc;

use futures_util::future::FutureExt as _;
use tokio::sync::Semaphore;

use super::Pull;
use crate::error::Error;
use crate::image::Image;
use crate::reference::ImageRef;
use crate::singleflight::PullRequest;
use crate::store::Images;

/// Pulls under way at a time; further ones wait. It bounds what all of them hold in memory.
static PERMITS: Semaphore = Semaphore::const_new(64);

impl Images {
    /// Pulls an image and answers when it is whole, recorded and listed.
    ///
    /// Callers that ask for the same reference with the same credentials share one pull; dropping the future
    /// of the last one stops it. Errors: [`Error::Name`] for a bad reference, else [`Error::Pull`].
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, Error> {
        let inner = &self.inner;
        let reference: ImageRef = request.reference.parse()?;
        let key = (reference.clone(), request.auth.clone(), request.platform);
        let pull = inner.in_flight.join(key, || {
            let (inner, reference) = (inner.clone(), reference.clone());
            async move {
                // Never closed, so an error cannot be.
                let _permit = PERMITS.acquire().await.ok();
                let mut pull = Pull::new(inner, reference, &request)?;
                let outcome = pull.run().await;
                if let Err(error) = &outcome {
                    pull.clean_up(error).await;
                }
                outcome.map_err(Arc::new)
            }
            .boxed()
        });
        pull.await.map_err(|cause| Error::Pull {
            reference: reference.to_string(),
            registry: reference.registry().to_owned(),
            cause,
        })
    }
}
