//! Reads files of images for containers, on the daemon's pool of threads.
//!
//! Called by: plans, and whoever looks for modules. Invariant: however many containers need an image whose disk does not
//! answer, they never have more than a part of that pool: the rest is for pods.
//! Must not know: what is read.

use coracle_lifecycle::{Error, blocking};
use tokio::sync::Semaphore;

/// How many read at a time.
static READING: Semaphore = Semaphore::const_new(16);

/// Runs work that reads files of images. The error for a panic names `what`.
pub(super) async fn read_images<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // The semaphore is never closed, so this cannot fail. The work keeps its permit, even if nobody waits any more.
    let permit = READING.acquire().await.ok();
    blocking(what, move || {
        let _permit = permit;
        work()
    })
    .await
}
