//! Work of images that blocks, on the daemon's pool of threads.
//!
//! Called by: everything here that reads or writes files. Invariant: images never have more than a part of that pool: the
//! rest is for pods. Not here: lookups of names, which have threads of their own.

use tokio::sync::Semaphore;

use crate::error::Error;

/// How much blocking work of images runs at a time: a slow disk must leave threads of the daemon's pool to pods.
static BLOCKING: Semaphore = Semaphore::const_new(16);

/// Runs blocking work off the async threads. Errors: its own; [`Error::Cancelled`] if the runtime is going away.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // The semaphore is never closed, so this cannot fail. The work keeps its permit, even if nobody waits any more.
    let permit = BLOCKING.acquire().await.ok();
    let work = move || {
        let _permit = permit;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) if join.is_cancelled() => Err(Error::Cancelled { doing }),
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}
