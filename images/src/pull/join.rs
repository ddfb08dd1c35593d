//! Starts pulls, or joins those that are under way.
//!
//! Called by: the daemon ([`Images::pull`]). [`crate::singleflight`] keeps the running pulls.
//! Invariants: the number of running pulls is bounded, and shared fairly by registries and namespaces; a pull that waits for
//! its turn holds up nobody of another namespace who wants the same image. Not here: the pull itself.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures_util::future::{Either, FutureExt as _};
use tracing::{Instrument as _, info_span};

use super::Pull;
use crate::auth_file;
use crate::blobs::blocking;
use crate::error::Error;
use crate::image::Image;
use crate::reference::ImageRef;
use crate::shares::{Most, Place, Shares};
use crate::signature::{self, Demands};
use crate::singleflight::{PullRequest, PullResult};
use crate::store::{Images, Inner};

/// Running pulls; further ones wait. It bounds the memory of all of them, and leaves room beside a registry that answers
/// slowly, and beside a namespace that has many of those.
const MOST: Most = Most {
    all: 64,
    of_tenant: 16,
    of_group: 32,
};

static PULLS: LazyLock<Arc<Shares>> = LazyLock::new(|| Shares::new(MOST));

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
        // Before the pull is one that others join: nobody waits in the queue of another namespace.
        let turn = PULLS.place(&request.namespace, reference.registry());
        let pull = match inner.in_flight.started_before(&key, turn).await {
            Either::Left(running) => running,
            Either::Right(place) => inner.in_flight.join(key, || {
                // Others that join it have spans of their own.
                let span = info_span!(target: "otel", "image.pull");
                let pull = run(inner.clone(), reference.clone(), request, place.ok());
                pull.instrument(span).boxed()
            }),
        };
        pull.await.map_err(|cause| Error::Pull {
            reference: reference.to_string(),
            registry: reference.registry().to_owned(),
            cause,
        })
    }
}

/// Runs a pull in its place. Logs its success.
async fn run(
    inner: Arc<Inner>,
    reference: ImageRef,
    mut request: PullRequest,
    _place: Option<Place>,
) -> PullResult {
    let pull_timeout = inner.config.pull_timeout;
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
