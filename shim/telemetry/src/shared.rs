//! A value that is made when it is requested, and shared for a while.
//!
//! Called by: `containers`. Invariants: it is made once at a time, also when the requests that it is made for are dropped;
//! those who wait for it, or come within [`FRESH`] after it, share it, and it is not kept longer.
//! Must not know: what the value is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_lifecycle::{Error, Kind};
use tokio::sync::Mutex;

/// How long a value is shared.
const FRESH: Duration = Duration::from_secs(1);

/// The last value and when it was made.
type Last<T> = Option<(Instant, Arc<T>)>;

/// Shares one value.
pub(crate) struct Shared<T> {
    last: Arc<Mutex<Last<T>>>,
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// Without a value.
    pub(crate) fn new() -> Shared<T> {
        let last = Arc::new(Mutex::new(None));
        Shared { last }
    }

    /// The value, if there is one that is at most a second old. Waits for one that is being made.
    pub(crate) async fn recent(&self) -> Option<Arc<T>> {
        fresh(&*self.last.lock().await)
    }

    /// The value, at most a second old, or what `make` returns. Errors: those of `make`, or its panic.
    pub(crate) async fn get(
        &self,
        make: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<Arc<T>, Error> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(value) = fresh(&last) {
            return Ok(value);
        }
        let kept = Arc::clone(&self.last);
        // Work on the blocking pool goes on without its caller. The lock goes with it, not with the caller.
        let making = tokio::spawn(async move {
            let value = Arc::new(make.await?);
            *last = Some((Instant::now(), Arc::clone(&value)));
            drop(last);
            tokio::spawn(forget_later(kept));
            Ok::<_, Error>(value)
        });
        making.await.unwrap_or_else(|panic| {
            let text = "measuring containers did not finish";
            Err(Error::because(Kind::Bug, text, panic))
        })
    }
}

fn fresh<T>(last: &Last<T>) -> Option<Arc<T>> {
    let (_, value) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH)?;
    Some(Arc::clone(value))
}

/// Drops the value once it is not shared any more.
async fn forget_later<T>(last: Arc<Mutex<Last<T>>>) {
    tokio::time::sleep(FRESH).await;
    last.lock().await.take_if(|(at, _)| at.elapsed() >= FRESH);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use coracle_lifecycle::blocking;

    use super::*;

    /// How many values are being made, the most at a time, and how many were begun so far.
    #[derive(Default)]
    struct Made {
        now: AtomicUsize,
        most: AtomicUsize,
        begun: AtomicUsize,
    }

    async fn make(made: Arc<Made>) -> Result<usize, Error> {
        blocking("making a number", move || {
            let number = made.begun.fetch_add(1, Ordering::SeqCst);
            let now = made.now.fetch_add(1, Ordering::SeqCst) + 1;
            made.most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            made.now.fetch_sub(1, Ordering::SeqCst);
            Ok(number)
        })
        .await
    }

    #[tokio::test]
    async fn requests_that_are_dropped_do_not_make_it_twice_at_a_time() {
        let (shared, made) = (Shared::new(), Arc::new(Made::default()));
        for _ in 0..4 {
            let request = shared.get(make(Arc::clone(&made)));
            let short = Duration::from_millis(10);
            // On a slow machine it may even get its value.
            let _ = tokio::time::timeout(short, request).await;
        }
        // Those before share the first one, unless the machine is so slow that it is old by then.
        shared.get(make(Arc::clone(&made))).await.unwrap();
        assert_eq!(made.most.load(Ordering::SeqCst), 1);
        assert!(made.begun.load(Ordering::SeqCst) < 5);
    }

    #[tokio::test]
    async fn a_failure_is_not_shared() {
        let shared = Shared::new();
        let failure = Error::new(Kind::Io, "no");
        assert!(shared.get(async { Err(failure) }).await.is_err());
        assert_eq!(*shared.get(async { Ok(7) }).await.unwrap(), 7);
    }
}
