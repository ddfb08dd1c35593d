//! The numbers of cgroups, read again only where something has happened since.
//!
//! Called by: `stats`, on a blocking thread. Calls: cgroups.
//! Invariants: of a cgroup whose processor time and memory are to the unit what they were at most the pressure is read
//! again for at most [`MAX_AGE`]: nothing ran in it, so that all its other numbers are the same, but for what the kernel
//! does for it later (writing pages back) and limits, of which [`Samples::forget`] is told; the pressure is read until it
//! has stood still between two readings: then nothing in the cgroup waits, and what does not run cannot begin to; no lock
//! is held while a file is read.
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
    /// When the pressure in `stats` was read.
    pressed: Instant,
    /// Nothing waited between the last two readings of the pressure.
    is_calm: bool,
    processes: Option<u64>,
    layer: Option<LayerUsage>,
}

impl Sampled {
    /// The numbers of a cgroup in which nothing has run since, and whether their pressure is the present one; else it is to
    /// be read.
    fn quiet(&self) -> (Stats, bool) {
        match self.is_calm {
            true => (self.stats.after_calm(self.pressed.elapsed()), true),
            false => (self.stats, false),
        }
    }

    /// Takes the pressure of `read`, which is as old as `pressed`.
    fn press(&mut self, read: Stats, pressed: Instant) {
        self.is_calm = self.stats.has_waited_as_long_as(&read);
        self.stats = read;
        self.pressed = pressed;
    }
}

impl Samples {
    /// The numbers of a cgroup; `None` when it is gone, as it is once its container has ended.
    pub(super) fn stats(&self, cgroup: &Cgroup) -> Option<Stats> {
        let (seen, at) = (Instant::now(), super::now());
        let activity = cgroup.activity().map_err(|error| log(cgroup, &error));
        let activity = activity.ok()?;
        let is_quiet = |last: &&Sampled| last.activity == activity && last.seen.elapsed() < MAX_AGE;
        let last = self
            .lock()
            .get(cgroup.path())
            .filter(is_quiet)
            .map(Sampled::quiet);
        match last {
            Some((stats, true)) => return Some(stats),
            Some((stats, false)) => return self.press(cgroup, activity, stats),
            None => {}
        }
        let stats = cgroup.stats().map_err(|error| log(cgroup, &error)).ok()?;
        let sampled = Sampled {
            activity,
            seen,
            at,
            stats,
            pressed: Instant::now(),
            is_calm: false,
            processes: None,
            layer: None,
        };
        self.lock().insert(cgroup.path().to_owned(), sampled);
        Some(stats)
    }

    /// `stats` of a cgroup in which nothing has run since they were read, with its pressure read anew.
    fn press(&self, cgroup: &Cgroup, activity: Activity, mut stats: Stats) -> Option<Stats> {
        let pressed = Instant::now();
        let read = cgroup.read_pressure(&mut stats);
        read.map_err(|error| log(cgroup, &error)).ok()?;
        let mut all = self.lock();
        if let Some(last) = all
            .get_mut(cgroup.path())
            .filter(|last| last.activity == activity)
        {
            last.press(stats, pressed);
        }
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
    use coracle_cgroup::{Pressure, Stall};

    fn sampled(seen: Instant, at: i64) -> Sampled {
        Sampled {
            activity: Activity::default(),
            seen,
            at,
            stats: Stats::default(),
            pressed: seen,
            is_calm: false,
            processes: None,
            layer: None,
        }
    }

    fn waited(total_ns: u64) -> Stats {
        let some = Stall {
            avg10: 50.0,
            total_ns,
            ..Stall::default()
        };
        Stats {
            io_pressure: Some(Pressure {
                some,
                ..Pressure::default()
            }),
            ..Stats::default()
        }
    }

    #[test]
    fn pressure_is_read_until_it_has_stood_still_and_decays_then() {
        let ago = |seconds| {
            Instant::now()
                .checked_sub(Duration::from_secs(seconds))
                .unwrap()
        };
        let mut last = Sampled {
            stats: waited(1_000),
            ..sampled(ago(40), 0)
        };
        assert!(!last.quiet().1, "read once");
        last.press(waited(2_000), ago(30));
        assert!(!last.quiet().1, "something waits while nothing runs");
        last.press(waited(2_000), ago(10));
        let (stats, is_present) = last.quiet();
        assert!(is_present);
        let shown = stats.io_pressure.unwrap().some;
        assert_eq!(shown.total_ns, 2_000);
        assert!((10.0..=18.4).contains(&shown.avg10), "{shown:?}");
        last.press(waited(2_001), ago(5));
        assert!(!last.quiet().1);
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
