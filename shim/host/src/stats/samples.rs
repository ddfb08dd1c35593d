//! The numbers of cgroups, read again only where something has happened since.
//!
//! Called by: `stats`, on a blocking thread. Calls: cgroups.
//! Invariants: of a cgroup whose processor time and memory are to the unit what they were only the pressure is read again
//! for at most [`MAX_AGE`]: nothing ran in it, so that all its other numbers are the same, but for what the kernel does for
//! it later (writing pages back) and limits, of which [`Samples::forget`] is told; no lock is held while a file is read.
//! Must not know: what the numbers are for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_cgroup::{Activity, Cgroup, Stats};
use coracle_lifecycle::LayerUsage;

/// How long numbers are kept while nothing happens.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The last numbers of cgroups, by path.
#[derive(Default)]
pub(super) struct Samples(Mutex<HashMap<String, Sampled>>);

struct Sampled {
    activity: Activity,
    /// When `activity` was read.
    seen: Instant,
    /// The same moment, in nanoseconds since 1970 UTC.
    at: i64,
    stats: Stats,
    processes: Option<u64>,
    layer: Option<LayerUsage>,
}

impl Samples {
    /// The numbers of a cgroup; `None` when it is gone, as it is once its container has ended.
    pub(super) fn stats(&self, cgroup: &Cgroup) -> Option<Stats> {
        let (seen, at) = (Instant::now(), super::now());
        let activity = cgroup.activity().map_err(|error| log(cgroup, &error));
        let activity = activity.ok()?;
        let is_quiet = |last: &&Sampled| last.activity == activity && last.seen.elapsed() < MAX_AGE;
        let quiet = self
            .lock()
            .get(cgroup.path())
            .filter(is_quiet)
            .map(|last| last.stats);
        if let Some(mut stats) = quiet {
            let read = cgroup.read_pressure(&mut stats);
            return read
                .map_err(|error| log(cgroup, &error))
                .ok()
                .map(|()| stats);
        }
        let stats = cgroup.stats().map_err(|error| log(cgroup, &error)).ok()?;
        let sampled = Sampled {
            activity,
            seen,
            at,
            stats,
            processes: None,
            layer: None,
        };
        self.lock().insert(cgroup.path().to_owned(), sampled);
        Some(stats)
    }

    /// The number of processes in a cgroup and below it, right after [`Samples::stats`] of it.
    pub(super) fn processes(&self, cgroup: &Cgroup) -> u64 {
        let known = self
            .lock()
            .get(cgroup.path())
            .and_then(|last| last.processes);
        known.unwrap_or_else(|| {
            let count = cgroup.pids().map_or(0, |pids| pids.len());
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            if let Some(last) = self.lock().get_mut(cgroup.path()) {
                last.processes = Some(count);
            }
            count
        })
    }

    /// The writable layer of the container in the cgroup `path`, if nothing ran in it since the layer was measured; else
    /// what `measure` gives. Right after [`Samples::stats`] of it.
    pub(super) fn layer(
        &self,
        path: &str,
        measure: impl FnOnce() -> Option<LayerUsage>,
    ) -> Option<LayerUsage> {
        let known = self.lock().get(path).and_then(|last| last.layer);
        known.or_else(|| {
            let layer = measure()?;
            if let Some(last) = self.lock().get_mut(path) {
                last.layer = Some(layer).filter(|layer| layer.at >= last.at);
            }
            Some(layer)
        })
    }

    /// Drops the numbers of a cgroup whose limits have changed.
    pub(super) fn forget(&self, path: &str) {
        self.lock().remove(path);
    }

    /// Drops numbers that are too old to be given, those of cgroups that are gone among them, once there are more than
    /// `limit`.
    pub(super) fn prune(&self, limit: usize) {
        let mut all = self.lock();
        if all.len() > limit {
            all.retain(|_, last| last.seen.elapsed() < MAX_AGE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Sampled>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(cgroup: &Cgroup, error: &coracle_cgroup::Error) {
    tracing::debug!(cgroup = cgroup.path(), %error, "no numbers of a cgroup");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn sampled(seen: Instant, at: i64) -> Sampled {
        Sampled {
            activity: Activity::default(),
            seen,
            at,
            stats: Stats::default(),
            processes: None,
            layer: None,
        }
    }

    fn layer(at: i64, bytes: u64) -> Option<LayerUsage> {
        let inodes = 1;
        Some(LayerUsage { at, bytes, inodes })
    }

    #[test]
    fn a_layer_is_kept_only_if_it_was_measured_after_the_last_activity() {
        let samples = Samples::default();
        let now = Instant::now();
        samples.lock().insert("/a".to_owned(), sampled(now, 1_000));
        let bytes = |measured| samples.layer("/a", || measured).map(|layer| layer.bytes);
        assert_eq!(bytes(None), None);
        assert_eq!(bytes(layer(999, 1)), Some(1), "measured before it");
        assert_eq!(bytes(layer(1_000, 2)), Some(2));
        assert_eq!(bytes(layer(1_001, 3)), Some(2), "nothing ran since");
        samples.lock().insert("/a".to_owned(), sampled(now, 2_000));
        assert_eq!(bytes(layer(2_001, 4)), Some(4));
        samples.forget("/a");
        assert_eq!(bytes(layer(2_002, 5)), Some(5));
    }

    #[test]
    fn old_numbers_go_once_there_are_many() {
        let samples = Samples::default();
        let old = Instant::now().checked_sub(2 * MAX_AGE).unwrap();
        samples.lock().insert("/old".to_owned(), sampled(old, 0));
        samples
            .lock()
            .insert("/new".to_owned(), sampled(Instant::now(), 0));
        samples.prune(2);
        assert_eq!(samples.lock().len(), 2);
        samples.prune(1);
        assert_eq!(samples.lock().keys().collect::<Vec<_>>(), ["/new"]);
    }
}
