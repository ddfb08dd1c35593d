//! The cache of compiled code: one file per (module, engine), made by the jailed compiler, authenticated by a MAC.
//!
//! The daemon calls it after an image was pulled and when a container is created.
//! Invariants: an entry is handed out only after its MAC was checked, once per (inode, ctime, size) and daemon, with
//! a key that only root can read. An entry that fails the check is removed and compiled again; one that cannot be read
//! now stays. What is kept is bounded: the code of whoever has the most goes first, of that what nobody wanted for longest. A file is never overwritten. Files are 0444 in a 0700 directory: an unprivileged container process reopens the descriptor it gets.
//! It must not know about images or what a guest may do.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compiler::Bounds;
use super::inspect::ModuleInfo;
use coracle_sandbox::helper::Permits;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_spec::id::hex;

mod compile;
mod counts;
mod failures;
mod files;
mod request;
mod room;
mod turn;
mod verified;

use counts::Counters;
pub use counts::{CompileCounts, CompileObserver};
use failures::Failures;
use files::{Stamp, Temporary, key, open_read, stamp};
pub use request::ModuleRequest;
use room::Kept;
use turn::Busy;

/// Bounds of every compilation, and of what is kept of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time of one compilation, all its threads together.
    pub cpu: Duration,
    /// Address space of the compiler process, in bytes.
    pub memory_bytes: u64,
    /// Largest module, in bytes.
    pub module_bytes: u64,
    /// Compiled code that is kept, in bytes.
    pub cache_bytes: u64,
}

/// The engine that compiled code is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineRef {
    /// Its compatibility hash.
    pub hash: String,
    /// The executable that compiles for it: `/proc/self/exe`, or `/proc/PID/exe` of a keeper of another build.
    pub exe: PathBuf,
}

/// One verified cache entry.
#[derive(Debug)]
pub struct Compiled {
    /// What the compiler found out about the program.
    pub info: ModuleInfo,
    code: PathBuf,
    stamp: Stamp,
}

#[derive(Serialize, Deserialize)]
struct Label {
    info: ModuleInfo,
    code_sha256: String,
    mac: String,
    /// For whom it was compiled.
    #[serde(default)]
    tenants: Vec<String>,
}

/// Key of an entry: engine hash and module digest.
type EntryKey = (String, String);

/// The cache; cheap to share behind an `Arc`.
pub struct CompileCache {
    dir: PathBuf,
    key: [u8; 32],
    limits: Mutex<CompileLimits>,
    permits: Permits,
    entries: Mutex<HashMap<EntryKey, Arc<Compiled>>>,
    busy: Mutex<HashMap<EntryKey, Arc<Busy>>>,
    failures: Failures,
    kept: Kept,
    counters: Counters,
    serial: AtomicU64,
}

fn bounds(limits: CompileLimits) -> Bounds {
    Bounds {
        cpu_s: limits.cpu.as_secs().max(1),
        memory_bytes: limits.memory_bytes,
        module_bytes: usize::try_from(limits.module_bytes).unwrap_or(usize::MAX),
    }
}

impl CompileCache {
    /// Opens the cache in `dir` and removes half-written files. Makes the directory (0700) and its key (0400) if
    /// they are absent. `permits` bounds how many compilers run at once.
    ///
    /// Errors: the directory cannot be made or the key not be read.
    pub fn open(dir: &Path, limits: CompileLimits, permits: Permits) -> Result<Self> {
        let _ = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        for entry in fs::read_dir(dir)
            .during(|| format!("list {}", dir.display()))?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with("tmp-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        let key = key(dir)?;
        let cache = Self {
            dir: dir.into(),
            key,
            limits: Mutex::new(limits),
            permits,
            entries: Mutex::default(),
            busy: Mutex::default(),
            failures: Failures::default(),
            kept: Kept::default(),
            counters: Counters::default(),
            serial: AtomicU64::new(0),
        };
        cache.measure()?;
        Ok(cache)
    }

    /// Later compilations have these limits but that of a module's size, which others check, too; and modules that failed within the earlier ones are tried again.
    pub fn set_limits(&self, limits: CompileLimits) {
        let mut held = lock(&self.limits);
        let module_bytes = held.module_bytes;
        let limits = CompileLimits {
            module_bytes,
            ..limits
        };
        if std::mem::replace(&mut *held, limits) != limits {
            self.failures.forget();
        }
    }

    /// Removes compiled code for engines that are not in `live_hashes` (this build's and those of live keepers).
    ///
    /// Errors: the cache directory cannot be listed.
    pub fn sweep(&self, live_hashes: &[String]) -> Result<()> {
        for entry in fs::read_dir(&self.dir)
            .during(|| format!("list {}", self.dir.display()))?
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_engine = name.len() == 64 && entry.path().is_dir();
            if is_engine && !live_hashes.contains(&name) {
                let _ = fs::remove_dir_all(entry.path());
                self.forget(|(hash, _)| *hash != name);
            }
        }
        self.measure().map(|_| ())
    }

    /// Removes compiled code of modules for whose digest (64 digits) `keep` returns false. Blocks.
    ///
    /// Returns how many files were removed. Errors: the cache directory cannot be listed.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<usize> {
        let list = |dir: &Path| fs::read_dir(dir).during(|| format!("list {}", dir.display()));
        let mut removed = 0;
        for engine in list(&self.dir)?.flatten() {
            if engine.file_name().len() != 64 || !engine.path().is_dir() {
                continue;
            }
            for file in list(&engine.path())?.flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                let digest = name.split('.').next().unwrap_or_default();
                if digest.len() == 64 && !keep(digest) {
                    removed += usize::from(fs::remove_file(file.path()).is_ok());
                }
            }
        }
        self.forget(|(_, digest)| keep(digest));
        self.failures.retain(keep);
        self.measure()?;
        Ok(removed)
    }

    fn paths(&self, hash: &str, digest: &str) -> (PathBuf, PathBuf) {
        let dir = self.dir.join(hash);
        (
            dir.join(format!("{digest}.cwasm")),
            dir.join(format!("{digest}.json")),
        )
    }

    fn store(
        &self,
        hash: &str,
        digest: &str,
        info: ModuleInfo,
        code: Temporary,
    ) -> Result<Arc<Compiled>> {
        let at = (hash.to_owned(), digest.to_owned());
        let (code_path, label_path) = self.paths(hash, digest);
        let what = || format!("store compiled code of {digest}");
        let _ = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.dir.join(hash));
        let mut hasher = Sha256::new();
        let mut reader = &code.file;
        reader.rewind().during(what)?;
        std::io::copy(&mut reader, &mut hasher).during(what)?;
        let code_sha256 = hex(&hasher.finalize());
        let mac = self
            .mac(&at, &info, &code_sha256)
            .ok_or_else(|| Error::new(Kind::Bug, what()))?;
        let label = serde_json::to_vec(&Label {
            info,
            code_sha256,
            mac,
            tenants: self.tenants_of(&at),
        })
        .map_err(|e| Error::with(Kind::Bug, what(), e))?;
        self.is_wanted(&at);
        code.rename(&code_path).during(what)?;
        failpoint::hit("compile.store").during(what)?;
        let file = self.temporary().during(what)?;
        (&file.file).write_all(&label).during(what)?;
        file.rename(&label_path).during(what)?;
        self.is_labelled_anew(&at);
        let unverified = || format!("{}: the entry just written does not verify", what());
        let stored = self.find(hash, digest)?;
        let stored = stored.ok_or_else(|| Error::new(Kind::Bug, unverified()))?;
        self.make_room(&at).map(|()| stored)
    }

    fn temporary(&self) -> std::io::Result<Temporary> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self
            .dir
            .join(format!("tmp-{}-{serial}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)?;
        Ok(Temporary { path, file })
    }
}

impl Compiled {
    /// Opens the code read-only, and checks that it is still the file that was verified.
    ///
    /// Errors: [`Kind::Missing`] if it was changed or removed since; call the cache again.
    pub fn open(&self) -> Result<OwnedFd> {
        let file = open_read(&self.code).during(|| format!("open {}", self.code.display()))?;
        if stamp(&file) != Some(self.stamp) {
            return Err(Error::new(
                Kind::Missing,
                format!("{} changed since it was verified", self.code.display()),
            ));
        }
        Ok(file.into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while the lock is held leaves the map usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::with(Kind::Bug, "run blocking work of the compile cache", e))?
}
