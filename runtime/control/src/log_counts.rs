//! What all keepers of a node count of the container logs that they write, in one page that the daemon reads.
//!
//! ```text
//! keeper's log thread --adds--> page of RUN/log-counts.1 <--reads-- daemon, for a scrape
//! ```
//! Written by: log threads, which may do no more than add to a number. Read by: the daemon, without waking anybody; it finds
//! what was counted while no daemon ran. Invariants: nothing here waits, allocates after [`LogCounts::open`], or fails; what a
//! keeper that was killed in a write has left behind is given back by the next [`LogCounts::totals`].
//! It must not know names of metrics, nor whose a log is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coracle_sys::shared::{self, WORDS, Words};
use rustix::time::{ClockId, clock_gettime};

/// A write that takes longer stalls its log: the container waits, as soon as its pipe is full.
pub const STALLED: Duration = Duration::from_secs(5);

/// The file below the run directory. Another arrangement of the page has another name.
const FILE: &str = "log-counts.1";
const WRITTEN: usize = 0;
const LOST: usize = 1;
/// From here on pairs: whose write is under way, and since when; both 0 if there is none.
const FIRST_PAIR: usize = 8;
const PAIRS: usize = (WORDS - FIRST_PAIR) / 2;
/// Pairs that a write looks at for a free one.
const TRIES: usize = 8;

/// The page.
#[derive(Clone, Copy, Debug)]
pub struct LogCounts(&'static Words);

/// Whose a write is: a pod, by the first digits of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(u64);

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTotals {
    /// Bytes in logs, with the heads of lines.
    pub written_bytes: u64,
    /// Lines that a full or broken disk has not taken.
    pub lost_lines: u64,
    /// Logs whose write has taken longer than [`STALLED`].
    pub stalled: u64,
}

impl Owner {
    /// The pod with this id.
    pub fn of(pod: &str) -> Self {
        let digits = pod.get(..16).unwrap_or_default();
        // 0 is nobody.
        Self(u64::from_str_radix(digits, 16).unwrap_or_default() | 1)
    }
}

impl LogCounts {
    /// Where the page is below the run directory.
    pub fn path(run: &Path) -> PathBuf {
        run.join(FILE)
    }

    /// Opens the page at `path`, or makes it. Errors: the disk is full or refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        shared::map(&file).map(Self)
    }

    /// This process's forks do not have the page, and must not use it. Errors: the kernel refuses.
    pub fn keep_from_forks(self) -> io::Result<()> {
        shared::keep_from_forks(self.0)
    }

    /// Bytes were written to a log.
    pub fn add_written(self, bytes: usize) {
        self.0[WRITTEN].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A line was lost.
    pub fn add_lost(self) {
        self.0[LOST].fetch_add(1, Ordering::Relaxed);
    }

    /// A write to a log of `owner` begins; `number` tells its writer from others. What is returned is for [`Self::end`].
    pub fn begin(self, owner: Owner, number: usize) -> Option<usize> {
        let first = owner.0 as usize ^ number;
        let mut tried = (0..TRIES).map(|next| first.wrapping_add(next) % PAIRS);
        tried.find(|at| {
            let Some((whose, since)) = self.pair(*at) else {
                return false;
            };
            let (relaxed, acquire) = (Ordering::Relaxed, Ordering::Acquire);
            let taken = whose.compare_exchange(0, owner.0, acquire, relaxed);
            if taken.is_ok() {
                since.store(now_ms(), relaxed);
            }
            taken.is_ok()
        })
    }

    /// The write is over.
    pub fn end(self, begun: Option<usize>) {
        if let Some((whose, since)) = begun.and_then(|at| self.pair(at)) {
            since.store(0, Ordering::Relaxed);
            whose.store(0, Ordering::Release);
        }
    }

    /// What was counted since the node's start. `pods` are the ids of all, and whether their keepers are known to live.
    pub fn totals<'a>(self, pods: impl Iterator<Item = (&'a str, bool)>) -> LogTotals {
        let pods: HashMap<u64, bool> = pods.map(|(pod, lives)| (Owner::of(pod).0, lives)).collect();
        let (now, limit) = (now_ms(), STALLED.as_millis() as u64);
        let mut stalled = 0;
        for (whose, since) in (0..PAIRS).filter_map(|at| self.pair(at)) {
            let owner = whose.load(Ordering::Acquire);
            let began = since.load(Ordering::Relaxed);
            let is_long = began != 0 && now.saturating_sub(began) > limit;
            match pods.get(&owner) {
                Some(true) if is_long => stalled += 1,
                None if owner != 0 => {
                    // Its keeper was killed. One whose pod is being made has no log yet.
                    let (relaxed, release) = (Ordering::Relaxed, Ordering::Release);
                    let _ = whose.compare_exchange(owner, 0, release, relaxed);
                }
                _ => {}
            }
        }
        LogTotals {
            written_bytes: self.0[WRITTEN].load(Ordering::Relaxed),
            lost_lines: self.0[LOST].load(Ordering::Relaxed),
            stalled,
        }
    }

    /// Whose write is under way, and since when.
    fn pair(self, at: usize) -> Option<(&'static AtomicU64, &'static AtomicU64)> {
        let first = FIRST_PAIR + 2 * at;
        Some((self.0.get(first)?, self.0.get(first + 1)?))
    }
}

/// Milliseconds of the clock that all processes share; never 0.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000) | 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn page() -> (tempfile::TempDir, LogCounts) {
        let run = tempfile::tempdir().unwrap();
        let page = LogCounts::open(&LogCounts::path(run.path())).unwrap();
        (run, page)
    }

    fn pod(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn age(page: LogCounts, at: Option<usize>, by: Duration) {
        let (_, since) = page.pair(at.unwrap()).unwrap();
        since.fetch_sub(by.as_millis() as u64, Ordering::Relaxed);
    }

    #[test]
    fn the_next_daemon_reads_what_was_counted_before() {
        let (run, page) = page();
        page.add_written(70);
        page.add_written(5);
        page.add_lost();
        let other = LogCounts::open(&LogCounts::path(run.path())).unwrap();
        let expected = LogTotals {
            written_bytes: 75,
            lost_lines: 1,
            stalled: 0,
        };
        assert_eq!(other.totals(std::iter::empty()), expected);
    }

    #[test]
    fn a_write_is_stalled_once_it_takes_long_and_until_it_ends() {
        let (_run, page) = page();
        let (pod, other) = (pod('a'), pod('b'));
        let stalled = || {
            let pods = [(pod.as_str(), true), (&other, true)];
            page.totals(pods.into_iter()).stalled
        };
        let begun = page.begin(Owner::of(&pod), 7);
        let short = page.begin(Owner::of(&other), 7);
        assert_eq!(stalled(), 0);
        age(page, begun, STALLED + Duration::from_secs(1));
        assert_eq!(stalled(), 1);
        page.end(begun);
        assert_eq!(stalled(), 0);
        page.end(short);
        assert_eq!(page.begin(Owner::of(&pod), 7), begun, "it is free again");
    }

    #[test]
    fn what_a_killed_keeper_left_is_given_back() {
        let (_run, page) = page();
        let (dead, live) = (pod('c'), pod('d'));
        // As many as there are: the next finds none, and is not counted.
        let tries = 0..100 * PAIRS;
        let all: Vec<usize> = tries
            .filter_map(|number| page.begin(Owner::of(&dead), number))
            .collect();
        assert_eq!(all.len(), PAIRS);
        for at in &all {
            age(page, Some(*at), STALLED * 2);
        }
        let none = page.begin(Owner::of(&live), 0);
        assert_eq!(none, None);
        page.end(none);
        assert_eq!(page.totals([(live.as_str(), true)].into_iter()).stalled, 0);
        assert!(page.begin(Owner::of(&live), 0).is_some());
    }
}
