//! Caches ready filters by profile and capabilities, so that each is built once.
//!
//! The daemon calls it for every Linux container. A filter is in a sealed memfd; callers get another descriptor of it,
//! which can be read and not changed.
//! Invariant: concurrent callers for one filter build it once, and a build does not block callers for another filter.
//! It must not know how filters are loaded, or which profile a container has.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::Profile;
use coracle_spec::error::{Context as _, Result};
use coracle_sys::memfd::sealed;

/// The most filters that are kept; each takes some kilobytes of kernel memory and a descriptor.
const MOST_FILTERS: usize = 64;

/// A profile's digest and the relevant capabilities.
type Key = ([u8; 32], u64);

/// Built filters; when there are 64, the least recently used one is removed. Shared between threads.
#[derive(Debug, Default)]
pub struct ProfileCache {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    filter: Arc<Mutex<Option<OwnedFd>>>,
    last_use: u64,
}

impl ProfileCache {
    /// The filter of `profile` for a payload with this bounding set: a sealed memfd of ready BPF.
    ///
    /// Building takes about 10 ms; call it where blocking is fine.
    /// Errors: those of [`Profile::compile`], or memfd_create(2) or dup(2) failed. Failures are not cached.
    pub fn filter(&self, profile: &Profile, capabilities: u64) -> Result<OwnedFd> {
        let relevant = capabilities & profile.relevant_capabilities();
        let entry = self.entry((profile.digest, relevant));
        let mut filter = entry.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = match filter.take() {
            Some(ready) => ready,
            None => sealed("seccomp-profile", &profile.compile(relevant)?)
                .during(|| "seal a seccomp profile's filter".into())?,
        };
        filter
            .insert(ready)
            .try_clone()
            .during(|| "duplicate a seccomp profile's filter".into())
    }

    /// Builds the runtime default's filter for `capabilities` in advance, so that the first container does not wait for
    /// it.
    ///
    /// Errors: those of [`ProfileCache::filter`].
    pub fn warm(&self, capabilities: u64) -> Result<()> {
        self.filter(Profile::runtime_default(), capabilities)
            .map(drop)
    }

    fn entry(&self, key: Key) -> Arc<Mutex<Option<OwnedFd>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let now = entries.uses;
        if entries.by_key.len() >= MOST_FILTERS && !entries.by_key.contains_key(&key) {
            let oldest = (entries.by_key.iter())
                .min_by_key(|(_, entry)| entry.last_use)
                .map(|(key, _)| *key);
            oldest.map(|key| entries.by_key.remove(&key));
        }
        let entry = entries.by_key.entry(key).or_insert_with(|| Entry {
            filter: Arc::default(),
            last_use: now,
        });
        entry.last_use = now;
        Arc::clone(&entry.filter)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

    use super::*;
    use coracle_sys::memfd::read_all;

    const ADMIN: u64 = 1 << 21;

    fn inode(fd: &OwnedFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn a_filter_is_built_once_per_profile_and_relevant_capabilities() {
        let cache = ProfileCache::default();
        let default = Profile::runtime_default();
        cache.warm(0).unwrap();
        let first = cache.filter(default, 0).unwrap();
        // No rule depends on CAP_CHOWN.
        let same = cache.filter(default, 1).unwrap();
        let other = cache.filter(default, ADMIN).unwrap();
        assert_eq!(inode(&first), inode(&same));
        assert_ne!(inode(&first), inode(&other));
        let bytes = read_all(first.as_fd(), 1 << 20).unwrap();
        assert_eq!(bytes, default.compile(0).unwrap());
        let seals = fcntl_get_seals(&first).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK));
    }

    #[test]
    fn the_least_recently_used_filter_is_removed() {
        let cache = ProfileCache::default();
        let profile = |n: usize| {
            Profile::parse(
                format!(
                    r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                        {{"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":{n}}}]}}"#
                )
                .as_bytes(),
            )
            .unwrap()
        };
        let first = cache.filter(&profile(1), 0).unwrap();
        let second = cache.filter(&profile(2), 0).unwrap();
        for n in 3..=MOST_FILTERS {
            cache.filter(&profile(n), 0).unwrap();
        }
        assert_eq!(inode(&first), inode(&cache.filter(&profile(1), 0).unwrap()));
        cache.filter(&profile(MOST_FILTERS + 1), 0).unwrap();
        assert_eq!(cache.entries.lock().unwrap().by_key.len(), MOST_FILTERS);
        assert_eq!(inode(&first), inode(&cache.filter(&profile(1), 0).unwrap()));
        assert_ne!(
            inode(&second),
            inode(&cache.filter(&profile(2), 0).unwrap())
        );
    }

    #[test]
    fn a_failed_build_is_not_cached() {
        let cache = ProfileCache::default();
        let foreign = Profile::parse(
            br#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_S390X"]}"#,
        )
        .unwrap();
        cache.filter(&foreign, 0).unwrap_err();
        cache.filter(&foreign, 0).unwrap_err();
        cache.warm(0).unwrap();
    }

    #[test]
    fn concurrent_callers_build_a_filter_once() {
        let cache = ProfileCache::default();
        let all: Vec<OwnedFd> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| cache.filter(Profile::runtime_default(), ADMIN).unwrap()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(all.iter().all(|fd| inode(fd) == inode(&all[0])));
    }
}
