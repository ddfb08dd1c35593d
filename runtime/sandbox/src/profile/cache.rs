//! Caches ready filters by profile and capabilities, so that each is built once.
//!
//! The daemon calls it for every Linux container. A filter is in a sealed memfd; callers get another descriptor of it,
//! which can be read and not changed.
//! Invariant: concurrent callers for one filter build it once, and a build does not block callers for another filter.
//! It must not know how filters are loaded, or which profile a container has.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Profile, floor};
use coracle_spec::Floor;
use coracle_spec::error::{Context as _, Result};
use coracle_sys::memfd::sealed;

/// The most filters that are kept; each takes some kilobytes of kernel memory and a descriptor.
const MOST_FILTERS: usize = 64;

/// A profile's digest, the relevant capabilities, the floor below it; without a profile the first two are 0.
type Key = ([u8; 32], u64, Floor);

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
    /// The filter of `profile` for a payload with this bounding set, with `floor` in front: a sealed memfd of ready BPF.
    /// Without a profile the floor is all that is refused.
    ///
    /// Building takes about 10 ms; call it where blocking is fine.
    /// Errors: those of [`Profile::compile`], or memfd_create(2) or dup(2) failed. Failures are not cached.
    pub fn filter(
        &self,
        profile: Option<&Profile>,
        capabilities: u64,
        floor: Floor,
    ) -> Result<OwnedFd> {
        let (digest, relevant) = profile.map_or(([0; 32], 0), |profile| {
            let relevant = capabilities & profile.relevant_capabilities();
            (profile.digest, relevant)
        });
        let entry = self.entry((digest, relevant, floor));
        let mut filter = entry.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = match filter.take() {
            Some(ready) => ready,
            None => {
                let own = profile
                    .map(|profile| profile.compile(relevant))
                    .transpose()?;
                sealed("seccomp-profile", &floor::in_front(floor, own)?)
                    .during(|| "seal a seccomp profile's filter".into())?
            }
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
        let profile = Some(Profile::runtime_default());
        self.filter(profile, capabilities, Floor::default())
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
        let first = cache.filter(Some(default), 0, Floor::default()).unwrap();
        // No rule depends on CAP_CHOWN.
        let same = cache.filter(Some(default), 1, Floor::default()).unwrap();
        let other = cache
            .filter(Some(default), ADMIN, Floor::default())
            .unwrap();
        assert_eq!(inode(&first), inode(&same));
        assert_ne!(inode(&first), inode(&other));
        let floor = Floor {
            no_user_namespaces: true,
            ..Floor::default()
        };
        let floored = cache.filter(Some(default), 0, floor).unwrap();
        assert_ne!(inode(&first), inode(&floored));
        let alone = cache.filter(None, 0, floor).unwrap();
        assert_ne!(inode(&alone), inode(&floored));
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
        let first = cache
            .filter(Some(&profile(1)), 0, Floor::default())
            .unwrap();
        let second = cache
            .filter(Some(&profile(2)), 0, Floor::default())
            .unwrap();
        for n in 3..=MOST_FILTERS {
            cache
                .filter(Some(&profile(n)), 0, Floor::default())
                .unwrap();
        }
        assert_eq!(
            inode(&first),
            inode(
                &cache
                    .filter(Some(&profile(1)), 0, Floor::default())
                    .unwrap()
            )
        );
        cache
            .filter(Some(&profile(MOST_FILTERS + 1)), 0, Floor::default())
            .unwrap();
        assert_eq!(cache.entries.lock().unwrap().by_key.len(), MOST_FILTERS);
        assert_eq!(
            inode(&first),
            inode(
                &cache
                    .filter(Some(&profile(1)), 0, Floor::default())
                    .unwrap()
            )
        );
        assert_ne!(
            inode(&second),
            inode(
                &cache
                    .filter(Some(&profile(2)), 0, Floor::default())
                    .unwrap()
            )
        );
    }

    #[test]
    fn a_failed_build_is_not_cached() {
        let cache = ProfileCache::default();
        let foreign = Profile::parse(
            br#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_S390X"]}"#,
        )
        .unwrap();
        cache
            .filter(Some(&foreign), 0, Floor::default())
            .unwrap_err();
        cache
            .filter(Some(&foreign), 0, Floor::default())
            .unwrap_err();
        cache.warm(0).unwrap();
    }

    #[test]
    fn concurrent_callers_build_a_filter_once() {
        let cache = ProfileCache::default();
        let all: Vec<OwnedFd> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        cache
                            .filter(Some(Profile::runtime_default()), ADMIN, Floor::default())
                            .unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(all.iter().all(|fd| inode(fd) == inode(&all[0])));
    }
}
