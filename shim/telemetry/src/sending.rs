//! Bounds how many measurements clients hold together that read their text slowly, or not at all.
//!
//! Called by: [`super::Scrapes`], for each scrape of containers. Invariant: text is being made of at most [`MOST`] measurements;
//! who would need one more is refused before it is made. Any number of clients may share one.
//! Must not know: what is measured, HTTP.

use std::sync::{Arc, Weak};

use coracle_lifecycle::Error;
use coracle_metrics::listener::Refusal;
use tokio::sync::Mutex;

use super::{Collector, Snapshot};

/// Most measurements that are being sent. One of a full node occupies some ten MB.
const MOST: usize = 3;

/// The measurements that are being sent.
#[derive(Debug, Default)]
pub(crate) struct Sending(Mutex<Vec<Weak<Snapshot>>>);

impl Sending {
    /// A measurement to send. Errors: it cannot be made; too many are being sent.
    pub(crate) async fn admit(&self, collector: &Collector) -> Result<Arc<Snapshot>, Refusal> {
        self.admit_by(collector.recent(), collector.snapshot())
            .await
    }

    /// The same: `recent` is the measurement that can be shared, if there is one, `measure` that or a new one.
    async fn admit_by(
        &self,
        recent: impl Future<Output = Option<Arc<Snapshot>>>,
        measure: impl Future<Output = Result<Arc<Snapshot>, Error>>,
    ) -> Result<Arc<Snapshot>, Refusal> {
        // Locked while it is measured: who waits here would wait for the measurement, too.
        let mut sending = self.0.lock().await;
        sending.retain(|sent| sent.strong_count() > 0);
        if sending.len() >= MOST {
            let shared = recent.await;
            return shared.filter(|shared| holds(&sending, shared)).ok_or_else(|| {
                Refusal::Busy(format!(
                    "{MOST} scrapes of containers are still being sent to clients that read slowly; try again"
                ))
            });
        }
        let snapshot = measure.await;
        let snapshot = snapshot.map_err(|error| Refusal::Failed(error.chain()))?;
        if !holds(&sending, &snapshot) {
            sending.push(Arc::downgrade(&snapshot));
        }
        Ok(snapshot)
    }
}

fn holds(sending: &[Weak<Snapshot>], snapshot: &Arc<Snapshot>) -> bool {
    sending
        .iter()
        .any(|sent| std::ptr::eq(sent.as_ptr(), Arc::as_ptr(snapshot)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    async fn scrape(
        sending: &Sending,
        recent: Option<&Arc<Snapshot>>,
    ) -> Result<Arc<Snapshot>, Refusal> {
        let (recent, new) = (recent.cloned(), recent.cloned());
        let new = async { Ok(new.unwrap_or_default()) };
        sending.admit_by(std::future::ready(recent), new).await
    }

    #[tokio::test]
    async fn slow_clients_hold_few_measurements_and_many_share_one() {
        let sending = Sending::default();
        let mut held = Vec::new();
        for _ in 0..MOST {
            held.push(scrape(&sending, None).await.unwrap());
        }
        let refused = scrape(&sending, None).await.unwrap_err();
        assert!(
            matches!(&refused, Refusal::Busy(why) if why.contains("3 scrapes")),
            "{refused:?}"
        );
        let newest = held.last().unwrap().clone();
        for _ in 0..100 {
            held.push(scrape(&sending, Some(&newest)).await.unwrap());
        }
        assert_eq!(Arc::strong_count(&newest), 102);
        // One that nobody sends yet would be one more.
        let unsent = Arc::new(Snapshot::default());
        scrape(&sending, Some(&unsent)).await.unwrap_err();
        drop(held.remove(0));
        scrape(&sending, Some(&unsent)).await.unwrap();
    }
}
