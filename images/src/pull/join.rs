//! Starts pulls, or joins those that are under way.
//!
//! Called by: the daemon ([`Images::pull`]). [`crate::singleflight`] keeps the running pulls.
//! Invariant: the number of running pulls is bounded, and that from one registry. Not here: the pull itself.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt as _;
use tokio::sync::Semaphore;
use tracing::{Instrument as _, info_span};

use super::Pull;
use crate::auth_file;
use crate::blobs::blocking;
use crate::error::Error;
use crate::image::Image;
use crate::reference::ImageRef;
use crate::signature::{self, Demands};
use crate::singleflight::PullRequest;
use crate::store::{Images, Inner};

/// Running pulls; further ones wait. It bounds the memory of all of them.
static PERMITS: Semaphore = Semaphore::const_new(64);
/// Running pulls from one registry, so that one that answers slowly leaves room for others.
const MAX_OF_REGISTRY: usize = 16;

/// The registries that pulls run from or wait for.
static REGISTRIES: LazyLock<Mutex<HashMap<String, Weak<Semaphore>>>> =
    LazyLock::new(Mutex::default);

/// The places for pulls from `registry`.
fn places(registry: &str) -> Arc<Semaphore> {
    let mut registries = REGISTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = registries.get(registry).and_then(Weak::upgrade) {
        return known;
    }
    registries.retain(|_, known| known.strong_count() > 0);
    let new = Arc::new(Semaphore::new(MAX_OF_REGISTRY));
    registries.insert(registry.to_owned(), Arc::downgrade(&new));
    new
}

impl Images {
    /// Pulls an image and returns when it is complete, recorded and listed.
    ///
    /// Callers that ask for the same reference with the same credentials share one pull; dropping the future
    /// of the last one stops it. Errors: [`Error::Name`] for a bad reference, else [`Error::Pull`].
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, Error> {
        let inner = &self.inner;
        let reference: ImageRef = request.reference.parse()?;
        let namespace = match inner.config.signature_policy_dir {
            Some(_) => request.namespace.clone(),
            None => String::new(),
        };
        let key = (
            reference.clone(),
            request.auth.clone(),
            request.platform,
            namespace,
        );
        let pull_timeout = inner.config.pull_timeout;
        let pull = inner.in_flight.join(key, || {
            let (inner, reference) = (inner.clone(), reference.clone());
            // Others that join it have spans of their own.
            let span = info_span!(target: "otel", "image.pull");
            async move {
                // The semaphores are never closed, so this cannot fail. The registry's first: nobody holds a place of all
                // while waiting for one of a registry.
                let _place = places(reference.registry()).acquire_owned().await.ok();
                let _permit = PERMITS.acquire().await.ok();
                let mut request = request;
                let demands = demands(&inner, &request, &reference).await?;
                if let (None, Some(path)) = (&request.auth, inner.config.auth_file.clone()) {
                    let name = reference.clone();
                    let read = move || auth_file::credentials(&path, &name);
                    request.auth = blocking("reading credentials", read).await?;
                }
                let mut pull = Pull::new(inner, reference, &request, demands)?;
                let began = Instant::now();
                let progress = pull.progress();
                let outcome = progress.logged(within(pull_timeout, pull.run())).await;
                if let Ok(image) = &outcome {
                    let (source, bytes) = pull.transfer();
                    tracing::info!(reference = pull.name(), digest = %image.id, bytes, seconds = began.elapsed().as_secs_f32(), source, "image pulled");
                }
                if let Err(error) = &outcome {
                    pull.clean_up(error).await;
                }
                outcome.map_err(Arc::new)
            }
            .instrument(span)
            .boxed()
        });
        pull.await.map_err(|cause| Error::Pull {
            reference: reference.to_string(),
            registry: reference.registry().to_owned(),
            cause,
        })
    }
}

/// What the signature policy demands in this pull. Errors: the policy refuses the image.
async fn demands(
    inner: &Arc<Inner>,
    request: &PullRequest,
    reference: &ImageRef,
) -> Result<Demands, Error> {
    let (inner, namespace, image) = (inner.clone(), request.namespace.clone(), reference.clone());
    let read = move || signature::for_image(&inner.config, &namespace, &image);
    blocking("reading the signature policy", read).await
}

/// Waits for a pull for as long as `limit` allows. Errors: Overdue, or the pull's own.
async fn within<T>(
    limit: Option<Duration>,
    pull: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(allowed) = limit else {
        return pull.await;
    };
    match tokio::time::timeout(allowed, pull).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Overdue {
            setting: "images.pull_timeout_s",
            allowed,
        }),
    }
}
