//! Work of images that blocks, on the daemon's pool of threads.
//!
//! Called by: everything here that reads or writes files. Invariants: images never have more than a part of that pool: the
//! rest is for pods; removal, by which a full disk gets room, never waits for pulls; no async worker opens, looks at, closes or
//! removes a file, but for a blob whose pull is cancelled while it waits for an unpacker: it was only read, and is closed there.
//! Not here: lookups of names, which have threads of their own.

use tokio::sync::Semaphore;

use crate::error::Error;

/// How much blocking work of images runs at a time: a slow disk must leave threads of the daemon's pool to pods.
static BLOCKING: Semaphore = Semaphore::const_new(16);
/// How much of what removes and collects content runs at a time, besides.
static REMOVING: Semaphore = Semaphore::const_new(4);

/// How many unpackers are supervised at a time: one that its disk keeps from dying keeps its thread, too.
static SUPERVISING: Semaphore = Semaphore::const_new(16);

/// Runs blocking work off the async threads. Errors: its own; [`Error::Cancelled`] if the runtime is going away.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    run(&BLOCKING, doing, work).await
}

/// As [`blocking`], for what removes content.
pub(crate) async fn removing<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    run(&REMOVING, doing, work).await
}

/// As [`blocking`], for what waits for an unpacker.
pub(crate) async fn supervising<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    run(&SUPERVISING, doing, work).await
}

/// Does what removes or closes something on a thread that may wait for the disk, some time later; at once where there is no
/// async runtime that could have it done.
pub(crate) fn later(doing: &'static str, work: impl FnOnce() + Send + 'static) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return work();
    };
    let work = move || {
        work();
        Ok(())
    };
    runtime.spawn(run(&REMOVING, doing, work));
}

async fn run<T: Send + 'static>(
    places: &'static Semaphore,
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // The semaphore is never closed, so this cannot fail. The work keeps its permit, even if nobody waits any more.
    let permit = places.acquire().await.ok();
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::time::Duration;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::error::Cause;
    use crate::{Images, ImagesConfig, RunningUnpacker, Unpacker, UnpackerLauncher};

    struct NoUnpackers;

    impl UnpackerLauncher for NoUnpackers {
        fn start(
            &self,
            _: Unpacker,
        ) -> BoxFuture<'static, Result<Box<dyn RunningUnpacker>, Cause>> {
            Box::pin(std::future::ready(Err("nothing is unpacked here".into())))
        }
    }

    #[tokio::test]
    async fn removal_and_collection_wait_for_no_pull_that_writes_slowly() {
        let root = tempfile::tempdir().unwrap();
        let config = ImagesConfig::new(root.path());
        let images = Images::open(config, Arc::new(NoUnpackers)).await.unwrap();
        let (release, slow) = mpsc::channel::<()>();
        let slow = Arc::new(Mutex::new(slow));
        let mut pulls = Vec::new();
        for _ in 0..100 {
            let slow = slow.clone();
            let write = move || Ok(slow.lock().unwrap().recv().is_err());
            pulls.push(tokio::spawn(blocking("storing a layer", write)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Long on however slow a machine, and the pulls write for ever.
        let soon = Duration::from_secs(60);
        let removed = tokio::time::timeout(soon, images.remove("a.example/b:c")).await;
        assert!(removed.expect("it waits for pulls").unwrap().is_none());
        let collected = tokio::time::timeout(soon, images.collect(Duration::ZERO)).await;
        collected.expect("it waits for pulls").unwrap();
        drop(release);
        for pull in pulls {
            assert!(pull.await.unwrap().unwrap());
        }
    }
}
