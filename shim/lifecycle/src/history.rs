//! What has happened to pods and containers lately, for operators who ask.
//!
//! Written by: drivers, beside the line in the log. Read by: the admin service. Invariants: bounded in entries and bytes, the
//! oldest go first; it begins anew with each daemon; writing never waits.
//! Must not know: phases.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

/// Most entries that are kept.
const MAX_ENTRIES: usize = 1000;
/// Most bytes of their text.
const MAX_BYTES: usize = 512 << 10;
/// Longest text of one entry, bytes.
const MAX_TEXT: usize = 4096;
/// How many entries a follower may fall behind.
const QUEUE: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When, in nanoseconds since 1970 UTC.
    pub at: i64,
    /// The pod's namespace and name.
    pub pod: (String, String),
    /// The sandbox's id.
    pub sandbox: String,
    /// The container's name and id, if it is about one.
    pub container: Option<(String, String)>,
    /// What happened, for people.
    pub what: String,
    /// How long that took; for an exit, how long the container ran.
    pub took: Duration,
    /// It is a failure.
    pub failed: bool,
}

/// The entries.
pub(crate) struct History {
    kept: Mutex<Kept>,
    followers: broadcast::Sender<Arc<HistoryEntry>>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Arc<HistoryEntry>>,
    bytes: usize,
}

impl History {
    pub fn new() -> History {
        History {
            kept: Mutex::default(),
            followers: broadcast::channel(QUEUE).0,
        }
    }

    /// Adds an entry, whose text is cut if it is long.
    pub fn add(&self, mut entry: HistoryEntry) {
        if entry.what.len() > MAX_TEXT {
            let end = entry.what.floor_char_boundary(MAX_TEXT);
            entry.what.truncate(end);
            entry.what.push_str(" (cut)");
        }
        let entry = Arc::new(entry);
        let mut kept = self.lock();
        kept.bytes += entry.what.len();
        kept.entries.push_back(Arc::clone(&entry));
        while kept.entries.len() > MAX_ENTRIES || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.entries.pop_front() else {
                break;
            };
            kept.bytes -= oldest.what.len();
        }
        // Under the lock, so that a follower sees each entry once. An error means that nobody follows.
        let _ = self.followers.send(entry);
    }

    /// All entries, oldest first, and those to come.
    pub fn follow(
        &self,
    ) -> (
        Vec<Arc<HistoryEntry>>,
        broadcast::Receiver<Arc<HistoryEntry>>,
    ) {
        let kept = self.lock();
        let followed = self.followers.subscribe();
        (kept.entries.iter().cloned().collect(), followed)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic while it is locked leaves entries that can still be read.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn entry(at: i64, text: usize) -> HistoryEntry {
        HistoryEntry {
            at,
            pod: ("ns".to_owned(), "pod".to_owned()),
            sandbox: String::new(),
            container: None,
            what: "é".repeat(text / 2),
            took: Duration::ZERO,
            failed: false,
        }
    }

    #[test]
    fn the_oldest_entries_go_first_and_memory_is_bounded() {
        let history = History::new();
        for at in 0..1500 {
            history.add(entry(at, 10));
        }
        let all = history.follow().0;
        assert_eq!((all.len(), all[0].at), (MAX_ENTRIES, 500));
        for at in 0..500 {
            history.add(entry(at, 1 << 20));
        }
        let bytes: usize = history
            .follow()
            .0
            .iter()
            .map(|entry| entry.what.len())
            .sum();
        assert!(bytes <= MAX_BYTES, "{bytes}");
        assert!(
            history
                .follow()
                .0
                .iter()
                .all(|entry| entry.what.len() < MAX_TEXT + 16)
        );
    }

    #[test]
    fn a_follower_gets_each_entry_once() {
        let history = History::new();
        history.add(entry(1, 2));
        let (before, mut after) = history.follow();
        history.add(entry(2, 2));
        assert_eq!(before.len(), 1);
        assert_eq!(after.try_recv().unwrap().at, 2);
        assert!(after.try_recv().is_err());
    }
}
