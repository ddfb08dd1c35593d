//! What a driver waits for: records, events, deadlines, watches.
//!
//! Called by: the driver. Must not know: what follows.

use coracle_control::keeper::KeeperEvent;
use futures_channel::mpsc::Receiver;
use serde::Serialize;
use tokio::task::AbortHandle;

use crate::blocking::{blocking, io_error, pass};
use crate::clock;
use crate::error::Error;
use crate::store::Slot;

/// A task that watches a process; dropping this aborts the task.
pub(super) struct Watch(AbortHandle);

impl Watch {
    /// Watches with a task.
    pub(super) fn of(task: AbortHandle) -> Watch {
        Watch(task)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Saves a record on the blocking pool; `site` is the failpoint before it.
pub(super) async fn save<T: Serialize + Send + 'static>(
    site: Option<&'static str>,
    slot: &mut Slot,
    record: T,
) -> Result<(), Error> {
    let mut moved = slot.clone();
    let (moved, saved) = blocking("saving a record", move || {
        let saved = site.map_or(Ok(()), pass).and_then(|()| {
            let what = format!("save a record in {}", moved.directory().display());
            moved.save(&record).map_err(|error| io_error(what, error))
        });
        Ok((moved, saved))
    })
    .await?;
    *slot = moved;
    if saved.is_err() {
        slot.set_behind();
    }
    saved
}

/// The keeper's next event; never returns without a connection.
pub(super) async fn next_event(events: &mut Option<Receiver<KeeperEvent>>) -> Option<KeeperEvent> {
    match events {
        Some(events) => events.recv().await.ok(),
        None => std::future::pending().await,
    }
}

/// Waits for a deadline; never returns without one.
pub(super) async fn sleep_until(deadline: Option<u64>) {
    match deadline {
        Some(at) => tokio::time::sleep(clock::until(at)).await,
        None => std::future::pending().await,
    }
}
