//! Leases addresses to pods: one file per address, named after it, containing the pod id.
//! Files are created exclusively and never fsynced: leases outlive the daemon, and after a
//! reboot no pod has an interface any more.
//!
//! Order: first round robin through the addresses not leased since the start, from where the
//! last daemon stopped (`.cursor`); then released ones, longest unused first.
//! Invariant: every index is in exactly one state: leased, fresh (ahead of the cursor, not
//! inherited), or in the queue of released ones.
//! Not here: interfaces. The caller knows whether an address is still in use.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::subnet::Ipv4Subnet;

const CURSOR_FILE: &str = ".cursor";
/// The cursor file always holds this many bytes, so that one write replaces the old number.
const CURSOR_DIGITS: usize = 10;

/// An address for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// The index of the address in the subnet.
    pub(super) index: u32,
    /// False if the pod had it before.
    pub(super) is_new: bool,
}

/// The addresses of one subnet.
#[derive(Debug)]
pub(super) struct Leases {
    dir: PathBuf,
    subnet: Ipv4Subnet,
    by_pod: HashMap<Arc<str>, u32>,
    by_index: HashMap<u32, Arc<str>>,
    /// Leased before this daemon started: not fresh, even when the cursor reaches it.
    inherited: HashSet<u32>,
    /// The next fresh index, while `fresh` is not 0.
    cursor: u32,
    /// How many indices the cursor still has to pass.
    fresh: u32,
    returned: VecDeque<u32>,
    cursor_file: File,
}

impl Leases {
    /// Reads the leases in `dir`, which is made if absent. A torn lease (a daemon died while it
    /// wrote it, before it made an interface) is dropped; so is one outside `subnet`.
    pub(super) fn open(dir: &Path, subnet: Ipv4Subnet) -> Result<Self, Error> {
        fs::create_dir_all(dir)
            .map_err(|error| Error::file("create the lease directory", dir, error))?;
        let path = dir.join(CURSOR_FILE);
        let cursor = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1);
        let cursor_file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path);
        let mut leases = Self {
            dir: dir.to_owned(),
            subnet,
            by_pod: HashMap::new(),
            by_index: HashMap::new(),
            inherited: HashSet::new(),
            cursor: if (1..=subnet.size()).contains(&cursor) {
                cursor
            } else {
                1
            },
            fresh: subnet.size(),
            returned: VecDeque::new(),
            cursor_file: cursor_file.map_err(|error| Error::file("open", &path, error))?,
        };
        let unlisted = |error| Error::file("list the leases in", dir, error);
        for entry in fs::read_dir(dir).map_err(unlisted)? {
            leases.inherit(&entry.map_err(unlisted)?.path())?;
        }
        Ok(leases)
    }

    fn inherit(&mut self, file: &Path) -> Result<(), Error> {
        let name = file.file_name().and_then(|name| name.to_str());
        let Some(address) = name.and_then(|name| name.parse::<Ipv4Addr>().ok()) else {
            return Ok(());
        };
        let text =
            fs::read_to_string(file).map_err(|error| Error::file("read the lease", file, error))?;
        let pod = text
            .strip_suffix('\n')
            .filter(|pod| !pod.is_empty() && !self.by_pod.contains_key(*pod));
        match (pod, self.subnet.index(address)) {
            (Some(pod), Some(index)) => {
                self.inherited.insert(index);
                self.insert(pod, index);
                Ok(())
            }
            _ => fs::remove_file(file)
                .map_err(|error| Error::file("delete the torn lease", file, error)),
        }
    }

    fn insert(&mut self, pod: &str, index: u32) {
        let pod: Arc<str> = pod.into();
        self.by_pod.insert(Arc::clone(&pod), index);
        self.by_index.insert(index, pod);
    }

    /// How many addresses are leased.
    pub(super) fn len(&self) -> usize {
        self.by_pod.len()
    }

    /// The index `pod` holds.
    pub(super) fn index_of(&self, pod: &str) -> Option<u32> {
        self.by_pod.get(pod).copied()
    }

    /// Whether a pod holds `index`.
    pub(super) fn is_leased(&self, index: u32) -> bool {
        self.by_index.contains_key(&index)
    }

    /// The pods with a lease.
    pub(super) fn pods(&self) -> Vec<Arc<str>> {
        self.by_pod.keys().cloned().collect()
    }

    /// Leases an address to `pod`, or finds the one it has. Addresses for which `is_in_use` is true
    /// are skipped and go to the end of the queue.
    pub(super) fn take(
        &mut self,
        pod: &str,
        mut is_in_use: impl FnMut(u32) -> Result<bool, Error>,
    ) -> Result<Lease, Error> {
        if let Some(index) = self.index_of(pod) {
            return Ok(Lease {
                index,
                is_new: false,
            });
        }
        let mut passed_over = Vec::new();
        let found = self.search(pod, &mut is_in_use, &mut passed_over);
        self.returned.extend(passed_over);
        match found? {
            Some(index) => {
                self.insert(pod, index);
                self.save_cursor(index)?;
                Ok(Lease {
                    index,
                    is_new: true,
                })
            }
            None => Err(Error::Exhausted {
                pod: pod.to_owned(),
                subnet: self.subnet.to_string(),
                size: self.subnet.size(),
                leased: self.len(),
            }),
        }
    }

    /// Records the first free index for `pod`. Those before it are in `passed_over`, also after an error.
    fn search(
        &mut self,
        pod: &str,
        is_in_use: &mut impl FnMut(u32) -> Result<bool, Error>,
        passed_over: &mut Vec<u32>,
    ) -> Result<Option<u32>, Error> {
        while let Some(index) = self.next() {
            // Before anything can fail, so that no index is lost.
            passed_over.push(index);
            if !is_in_use(index)? && self.record(pod, index)? {
                passed_over.pop();
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Takes the next index to try.
    fn next(&mut self) -> Option<u32> {
        while self.fresh > 0 {
            let index = self.cursor;
            self.cursor = index % self.subnet.size() + 1;
            self.fresh -= 1;
            if !self.inherited.contains(&index) {
                return Some(index);
            }
        }
        self.returned.pop_front()
    }

    /// Writes the lease file. False if it exists.
    fn record(&self, pod: &str, index: u32) -> Result<bool, Error> {
        let file = self.file(index);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&file)
            .and_then(|mut lease| {
                lease
                    .write_all(format!("{pod}\n").as_bytes())
                    .inspect_err(|_| {
                        // A torn lease would be dropped at the next start anyway.
                        let _ = fs::remove_file(&file);
                    })
            });
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::file("write the lease", &file, error)),
        }
    }

    /// Saves where the next daemon continues: behind `index`. One write, no fsync.
    fn save_cursor(&self, index: u32) -> Result<(), Error> {
        let next = index % self.subnet.size() + 1;
        let text = format!("{next:>CURSOR_DIGITS$}\n");
        let write = self.cursor_file.write_all_at(text.as_bytes(), 0);
        write.map_err(|error| Error::file("write", &self.dir.join(CURSOR_FILE), error))
    }

    /// Releases `pod`'s lease. False if it has none.
    pub(super) fn release(&mut self, pod: &str) -> Result<bool, Error> {
        let Some(index) = self.index_of(pod) else {
            return Ok(false);
        };
        let file = self.file(index);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("delete the lease", &file, error));
            }
            _ => {}
        }
        self.by_pod.remove(pod);
        self.by_index.remove(&index);
        self.returned.push_back(index);
        Ok(true)
    }

    /// Leases `index` to `pod`, whose record has that address. Changes nothing if it is leased to it already.
    pub(super) fn restore(&mut self, pod: &str, index: u32) -> Result<(), Error> {
        if self.index_of(pod) == Some(index) {
            return Ok(());
        }
        self.release(pod)?;
        if let Some(squatter) = self.by_index.get(&index).cloned() {
            self.release(&squatter)?;
        }
        self.returned.retain(|returned| *returned != index);
        self.inherited.insert(index);
        self.record(pod, index)?;
        self.insert(pod, index);
        Ok(())
    }

    fn file(&self, index: u32) -> PathBuf {
        self.dir.join(self.subnet.address(index).to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            Self(std::env::temp_dir().join(format!(
                "coracle-test-lease-{}-{number}",
                std::process::id()
            )))
        }

        fn open(&self) -> Leases {
            Leases::open(&self.0, "10.88.0.0/20".parse().unwrap()).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort_unstable();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn free(_: u32) -> Result<bool, Error> {
        Ok(false)
    }

    #[test]
    fn a_pod_keeps_its_lease_over_restarts() {
        let dir = Dir::new();
        let first = dir.open().take("a", free).unwrap();
        assert_eq!(
            first,
            Lease {
                index: 1,
                is_new: true
            }
        );
        let mut leases = dir.open();
        assert_eq!(
            leases.take("a", free).unwrap(),
            Lease {
                index: 1,
                is_new: false
            }
        );
        assert_eq!(dir.names(), [".cursor", "10.88.0.1"]);
        assert!(leases.release("a").unwrap());
        assert!(!leases.release("a").unwrap());
        assert_eq!(dir.names(), [".cursor"]);
    }

    #[test]
    fn a_restart_goes_on_where_the_last_daemon_stopped() {
        let dir = Dir::new();
        let mut leases = dir.open();
        for pod in ["a", "b", "c"] {
            leases.take(pod, free).unwrap();
        }
        leases.release("a").unwrap();
        assert_eq!(dir.open().take("d", free).unwrap().index, 4);
    }

    #[test]
    fn every_address_is_used_before_one_is_used_again_and_oldest_first() {
        let dir = Dir::new();
        let mut leases = dir.open();
        leases.take("inherited", free).unwrap();
        drop(leases);
        let mut leases = dir.open();
        leases.release("inherited").unwrap();
        let mut seen = Vec::new();
        for number in 0..4094 {
            let pod = format!("p{number}");
            seen.push(leases.take(&pod, free).unwrap().index);
            leases.release(&pod).unwrap();
        }
        // 2..=4094 are fresh; then the first one returned since the start.
        assert_eq!(seen[..4093], (2..=4094).collect::<Vec<_>>());
        assert_eq!(seen[4093], 1);
        assert_eq!(leases.take("next", free).unwrap().index, 2);
    }

    #[test]
    fn an_address_in_use_is_passed_over_and_kept() {
        let dir = Dir::new();
        let mut leases = dir.open();
        assert_eq!(leases.take("a", |index| Ok(index < 3)).unwrap().index, 3);
        let error = leases.take("b", |_| Ok(true)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Exhausted {
                    size: 4094,
                    leased: 1,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            leases
                .take("b", |_| Err(Error::io(
                    "test",
                    "test",
                    io::Error::other("x")
                )))
                .is_err()
        );
        let mut indices: Vec<u32> = (0..4093)
            .map(|number| leases.take(&format!("p{number}"), free).unwrap().index)
            .collect();
        indices.sort_unstable();
        assert_eq!(
            indices,
            (1..=4094).filter(|index| *index != 3).collect::<Vec<_>>()
        );
        assert!(leases.take("one more", free).is_err());
    }

    #[test]
    fn torn_and_foreign_leases_are_dropped() {
        let dir = Dir::new();
        dir.open().take("a", free).unwrap();
        for (name, text) in [
            ("10.88.0.7", ""),
            ("10.88.0.8", "half-a-pod"),
            ("10.99.0.1", "b\n"),
            ("10.88.0.9", "a\n"),
        ] {
            fs::write(dir.0.join(name), text).unwrap();
        }
        let leases = dir.open();
        assert_eq!(leases.len(), 1);
        assert_eq!(dir.names().len(), 2, "{:?}", dir.names());
    }

    #[test]
    fn restore_believes_the_record() {
        let dir = Dir::new();
        let mut leases = dir.open();
        leases.take("squatter", free).unwrap();
        leases.restore("a", 1).unwrap();
        leases.restore("a", 1).unwrap();
        leases.restore("b", 2).unwrap();
        assert_eq!(leases.index_of("squatter"), None);
        assert_eq!(leases.take("c", free).unwrap().index, 3);
        let again = dir.open();
        assert_eq!(
            (again.index_of("a"), again.index_of("b")),
            (Some(1), Some(2))
        );
    }
}
