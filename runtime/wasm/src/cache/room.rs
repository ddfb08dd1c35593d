//! How much compiled code is kept, and which goes when it is too much.
//!
//! Called by the cache, after it has stored an entry. Invariants: what was just stored stays, and so does what a process
//! has open, until it closes it; code of the tenant that has the most goes first, so that nobody's code pushes out that of those
//! who have less; code that several have asked for is that of the one with the least; of one tenant the entry that nobody has
//! asked for the longest time goes first, before that those that nobody asked for since the daemon's start, the oldest first.
//! It must not know what entries are for, or what tenants are.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::{CompileCache, EntryKey, Label, lock};
use coracle_spec::error::{Context as _, Result};

/// Most tenants of an entry that are remembered.
const MAX_TENANTS: usize = 8;

/// What the cache knows of what it keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    wanted: Mutex<HashMap<EntryKey, Wanted>>,
    bytes: AtomicU64,
    files: AtomicU64,
}

/// What is known of an entry since the daemon's start.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// When it was asked for last: later numbers are later. `None` if nobody has.
    last: Option<u64>,
    /// Who asked for it.
    by: BTreeSet<String>,
    /// For whom it was compiled, as its label says; `None` as long as nobody had to know.
    labelled: Option<BTreeSet<String>>,
}

/// An entry that may go.
struct Candidate {
    at: EntryKey,
    bytes: u64,
    written: SystemTime,
    wanted: Option<u64>,
    tenants: BTreeSet<String>,
}

impl Candidate {
    /// What goes first has the highest rank. What nobody is known to have wanted is of an earlier build.
    fn rank(&self, shares: &HashMap<&str, u64>) -> impl Ord + use<> {
        let of = |tenant: &String| shares.get(tenant.as_str()).copied().unwrap_or(0);
        let share = self.tenants.iter().map(of).min().unwrap_or(u64::MAX);
        (share, Reverse((self.wanted, self.written)))
    }
}

/// The bytes of each tenant's entries.
fn shares(entries: &[Candidate]) -> HashMap<&str, u64> {
    let mut shares = HashMap::new();
    for entry in entries {
        for tenant in &entry.tenants {
            *shares.entry(tenant.as_str()).or_default() += entry.bytes;
        }
    }
    shares
}

/// The files of one entry.
pub(super) struct Entry {
    bytes: u64,
    files: u64,
    written: SystemTime,
}

impl CompileCache {
    /// Bytes and files on the disk. O(1).
    pub fn used(&self) -> (u64, u64) {
        let (bytes, files) = (&self.kept.bytes, &self.kept.files);
        (bytes.load(Ordering::Relaxed), files.load(Ordering::Relaxed))
    }

    /// Somebody has asked for an entry.
    pub(super) fn is_wanted(&self, at: &EntryKey) {
        let now = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut wanted = lock(&self.kept.wanted);
        wanted.entry(at.clone()).or_default().last = Some(now);
    }

    /// `tenant` has asked for an entry.
    pub(super) fn is_wanted_by(&self, at: &EntryKey, tenant: &str) {
        self.is_wanted(at);
        let mut wanted = lock(&self.kept.wanted);
        let by = &mut wanted.entry(at.clone()).or_default().by;
        if by.len() < MAX_TENANTS && !by.contains(tenant) {
            by.insert(tenant.to_owned());
        }
    }

    /// An entry gets another label.
    pub(super) fn is_labelled_anew(&self, at: &EntryKey) {
        if let Some(known) = lock(&self.kept.wanted).get_mut(at) {
            known.labelled = None;
        }
    }

    /// Who has asked for an entry since the daemon's start.
    pub(super) fn tenants_of(&self, at: &EntryKey) -> Vec<String> {
        let wanted = lock(&self.kept.wanted);
        let by = wanted.get(at).map(|wanted| &wanted.by);
        by.into_iter().flatten().cloned().collect()
    }

    /// Forgets entries that are gone.
    pub(super) fn forget(&self, keep: impl Fn(&EntryKey) -> bool) {
        lock(&self.entries).retain(|at, _| keep(at));
        lock(&self.kept.wanted).retain(|at, _| keep(at));
    }

    /// Removes entries until the rest fits, but not that of `new`. Blocks. Errors: the directory cannot be listed.
    pub(super) fn make_room(&self, new: &EntryKey) -> Result<()> {
        let allowed = lock(&self.limits).cache_bytes;
        let entries = self.measure()?;
        let mut held: u64 = entries.values().map(|entry| entry.bytes).sum();
        if held <= allowed {
            return Ok(());
        }
        let mut left = self.candidates(entries);
        while held > allowed {
            let shares = shares(&left);
            let may_go = left.iter().enumerate().filter(|(_, one)| one.at != *new);
            let Some((first, _)) = may_go.max_by_key(|(_, one)| one.rank(&shares)) else {
                break;
            };
            let gone = left.swap_remove(first);
            self.evict(&gone, allowed);
            held -= gone.bytes;
        }
        self.measure().map(|_| ())
    }

    /// The entries, with what is known of who wanted them. Blocks.
    fn candidates(&self, entries: HashMap<EntryKey, Entry>) -> Vec<Candidate> {
        let mut wanted = lock(&self.kept.wanted).clone();
        let candidate = |(at, entry): (EntryKey, Entry)| {
            let known = wanted.remove(&at).unwrap_or_default();
            let tenants = match (known.by.is_empty(), known.labelled) {
                (false, _) => known.by,
                (true, Some(labelled)) => labelled,
                (true, None) => self.labelled_tenants(&at),
            };
            Candidate {
                wanted: known.last,
                bytes: entry.bytes,
                written: entry.written,
                tenants,
                at,
            }
        };
        entries.into_iter().map(candidate).collect()
    }

    /// For whom an entry was compiled, to be read once; nobody, if it does not say. Blocks.
    fn labelled_tenants(&self, at: &EntryKey) -> BTreeSet<String> {
        let (_, label) = self.paths(&at.0, &at.1);
        let label = fs::read(label).ok();
        let label: Option<Label> = label.and_then(|text| serde_json::from_slice(&text).ok());
        let Some(label) = label else {
            return BTreeSet::new();
        };
        let tenants: BTreeSet<String> = label.tenants.into_iter().collect();
        let mut wanted = lock(&self.kept.wanted);
        wanted.entry(at.clone()).or_default().labelled = Some(tenants.clone());
        tenants
    }

    fn evict(&self, gone: &Candidate, allowed: u64) {
        let (code, label) = self.paths(&gone.at.0, &gone.at.1);
        tracing::info!(
            digest = gone.at.1,
            bytes = gone.bytes,
            tenants = ?gone.tenants,
            limit = allowed,
            "compiled code is removed: all of it exceeds wasm.cache_bytes, whoever wants this has the most, and nobody asked for it longer"
        );
        let _ = fs::remove_file(label);
        let _ = fs::remove_file(code);
        self.forget(|known| *known != gone.at);
    }

    /// Finds all entries, and counts them. Blocks.
    pub(super) fn measure(&self) -> Result<HashMap<EntryKey, Entry>> {
        let list = |dir: &Path| fs::read_dir(dir).during(|| format!("list {}", dir.display()));
        let mut entries: HashMap<EntryKey, Entry> = HashMap::new();
        for engine in list(&self.dir)?.flatten() {
            let hash = engine.file_name().to_string_lossy().into_owned();
            if hash.len() != 64 || !engine.path().is_dir() {
                continue;
            }
            for file in list(&engine.path())?.flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                let digest = name.split('.').next().unwrap_or_default();
                let Ok(found) = file.metadata() else { continue };
                let at = (hash.clone(), digest.to_owned());
                let entry = entries.entry(at).or_insert(Entry {
                    bytes: 0,
                    files: 0,
                    written: SystemTime::UNIX_EPOCH,
                });
                entry.bytes += found.len();
                entry.files += 1;
                entry.written = entry.written.max(found.modified().unwrap_or(entry.written));
            }
        }
        let sum = |of: fn(&Entry) -> u64| entries.values().map(of).sum();
        let (bytes, files): (u64, u64) = (sum(|entry| entry.bytes), sum(|entry| entry.files));
        self.kept.bytes.store(bytes, Ordering::Relaxed);
        self.kept.files.store(files, Ordering::Relaxed);
        Ok(entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::time::Duration;

    use coracle_sandbox::helper::Permits;
    use coracle_spec::WasmKind;

    use super::*;
    use crate::cache::CompileLimits;
    use crate::inspect::ModuleInfo;

    const MIB: usize = 1 << 20;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn cache(name: &str) -> (Scratch, CompileCache) {
        let path =
            std::env::temp_dir().join(format!("coracle-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let limits = CompileLimits {
            cpu: Duration::from_secs(1),
            memory_bytes: 1 << 30,
            module_bytes: 1 << 20,
            cache_bytes: 8 << 20,
        };
        let opened = CompileCache::open(&path, limits, Permits::new(1, 1 << 30));
        (Scratch(path), opened.unwrap())
    }

    fn entry(number: usize) -> EntryKey {
        ("e".repeat(64), format!("{number:064x}"))
    }

    fn store(cache: &CompileCache, at: &EntryKey) {
        let mut code = cache.temporary().unwrap();
        code.file.write_all(&vec![7; MIB]).unwrap();
        let info = ModuleInfo {
            kind: WasmKind::Module,
            memory_min_bytes: 0,
            missing_imports: Vec::new(),
            more_missing: 0,
            offers: String::new(),
            problem: None,
            serves_http: false,
            can_serve_http: false,
            wasi_p3: false,
        };
        cache.store(&at.0, &at.1, info, code).unwrap();
    }

    #[test]
    fn compiled_code_is_bounded_and_what_nobody_asked_for_longest_goes() {
        let (scratch, cache) = cache("room");
        let mut held = None;
        for number in 0..20 {
            store(&cache, &entry(number));
            let first = cache.find(&entry(0).0, &entry(0).1).unwrap();
            held.get_or_insert_with(|| first.unwrap().open().unwrap());
            let (bytes, files) = cache.used();
            assert!(
                bytes <= 8 << 20 && files <= 16,
                "{bytes} bytes, {files} files"
            );
        }
        let has = |number: usize| {
            cache
                .find(&entry(number).0, &entry(number).1)
                .unwrap()
                .is_some()
        };
        assert!(has(0) && has(19) && !has(1) && !has(10));
        assert!(lock(&cache.entries).len() <= 8 && lock(&cache.kept.wanted).len() <= 8);
        // It is counted from the start on.
        let limits = *lock(&cache.limits);
        let again = CompileCache::open(&scratch.0, limits, Permits::new(1, 1 << 30)).unwrap();
        assert_eq!(again.used(), cache.used());
        // Removed with its image, it is not counted.
        cache.retain(|_| false).unwrap();
        assert_eq!(cache.used(), (0, 0));
    }

    #[test]
    fn a_tenant_with_much_code_pushes_out_its_own_and_not_that_of_others() {
        let (scratch, mut cache) = cache("tenants");
        let store_for = |cache: &CompileCache, number: usize, tenants: &[&str]| {
            for tenant in tenants {
                cache.is_wanted_by(&entry(number), tenant);
            }
            store(cache, &entry(number));
        };
        let has = |cache: &CompileCache, number: usize| {
            cache.paths(&entry(number).0, &entry(number).1).0.exists()
        };
        store_for(&cache, 0, &["other"]);
        store_for(&cache, 1, &["other", "greedy"]);
        for number in 10..40 {
            if number == 25 {
                // Who wanted what is known after a restart, too.
                let limits = *lock(&cache.limits);
                let again = CompileCache::open(&scratch.0, limits, Permits::new(1, 1 << 30));
                cache = again.unwrap();
            }
            store_for(&cache, number, &["greedy"]);
            assert!(has(&cache, number) && cache.used().0 <= 8 << 20);
            assert!(has(&cache, 0) && has(&cache, 1), "{number} pushed them out");
        }
        assert!(has(&cache, 35) && !has(&cache, 30));
    }

    #[test]
    fn an_eviction_reads_no_label_again() {
        let (scratch, cache) = cache("labels");
        let of = |number| format!("tenant-{number}");
        for number in 0..4 {
            cache.is_wanted_by(&entry(number), &of(number));
            store(&cache, &entry(number));
        }
        let limits = *lock(&cache.limits);
        let again = CompileCache::open(&scratch.0, limits, Permits::new(1, 1 << 30)).unwrap();
        let tenants = || {
            let candidates = again.candidates(again.measure().unwrap());
            let of = |one: Candidate| (one.at, one.tenants, one.wanted);
            candidates.into_iter().map(of).collect::<BTreeSet<_>>()
        };
        let read = tenants();
        for number in 0..4 {
            let at = entry(number);
            fs::write(again.paths(&at.0, &at.1).1, "{}").unwrap();
            let known = (at, BTreeSet::from([of(number)]), None);
            assert!(read.contains(&known), "{read:?}");
        }
        assert_eq!(tenants(), read);
        // One that is written anew says something new.
        again.is_wanted_by(&entry(0), "other");
        store(&again, &entry(0));
        lock(&again.kept.wanted)
            .get_mut(&entry(0))
            .unwrap()
            .by
            .clear();
        assert!(tenants().iter().any(|(_, of, _)| of.contains("other")));
    }

    #[test]
    fn an_entry_that_cannot_be_read_now_stays() {
        let (_scratch, cache) = cache("unreadable");
        let at = entry(1);
        store(&cache, &at);
        let (code, label) = cache.paths(&at.0, &at.1);
        lock(&cache.entries).clear();
        lock(&cache.kept.wanted).clear();
        // A directory: reading it is an error that says nothing about the entry.
        let aside = label.with_extension("aside");
        fs::rename(&label, &aside).unwrap();
        fs::create_dir(&label).unwrap();
        cache.find(&at.0, &at.1).unwrap_err();
        assert!(code.exists());
        assert!(
            lock(&cache.kept.wanted).contains_key(&at),
            "wanted before it is verified"
        );
        fs::remove_dir(&label).unwrap();
        fs::rename(&aside, &label).unwrap();
        assert!(cache.find(&at.0, &at.1).unwrap().is_some());
        // Wrong code goes.
        lock(&cache.entries).clear();
        fs::remove_file(&code).unwrap();
        fs::write(&code, "changed").unwrap();
        assert!(cache.find(&at.0, &at.1).unwrap().is_none());
        assert!(!code.exists() && !label.exists());
        assert!(lock(&cache.kept.wanted).is_empty());
    }
}
