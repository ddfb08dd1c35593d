//! Threads for paths that may hang: host paths of mounts and devices, CDI specifications, log directories.
//!
//! Called by: CreateContainer (mount sources, devices), StartContainer and ReopenContainerLog (log files). A path on a
//! dead network disk blocks its thread for ever, and no signal helps; here that costs one of [`THREADS`] threads, never
//! one of the runtime's.
//! Invariants: a caller waits at most [`TIMEOUT`]; at most [`INSIDE`] threads are in one file system while it does not
//! answer, so that a dead one leaves threads for the others; idle threads end.
//! Must not know: what a path is for.

mod walk;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use coracle_lifecycle::{Error, Kind};
use walk::Opened;

/// Most threads that resolve paths.
const THREADS: usize = 128;
/// Most threads in one file system at a time.
const INSIDE: usize = 8;
/// A file system with [`INSIDE`] threads, one of them for this long, gets no more.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a caller waits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Stack of a thread. Bytes; only touched pages count.
const STACK: usize = 256 << 10;

type Job = Box<dyn FnOnce(&Locations) + Send>;

/// The threads; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Paths(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    locations: Locations,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let State {
            queue,
            idle,
            threads,
        } = self;
        write!(f, "{} queued, {threads} threads, {idle} idle", queue.len())
    }
}

impl Paths {
    /// Runs `work` on one of the threads. `what` describes it in errors, with its path.
    ///
    /// Errors: Deadline when its file system does not answer or no thread is free in time; else those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        what: impl Fn() -> String,
        work: impl FnOnce(&Lookup<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let (began, has_begun) = oneshot::channel();
        let job = move |locations: &Locations| {
            if sender.is_closed() {
                return;
            }
            let _ = began.send(());
            let lookup = Lookup::new(locations);
            let result = work(&lookup);
            // A caller with the answer may rely on the location being free.
            drop(lookup);
            let _ = sender.send(result);
        };
        if let Err(error) = self.submit(Box::new(job)) {
            return Err(super::io_error(
                format!("start a thread for {}", what()),
                error,
            ));
        }
        let late = |why: String| Err(Error::new(Kind::Deadline, format!("{}: {why}", what())));
        match tokio::time::timeout(TIMEOUT, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::new(Kind::Bug, format!("{} did not finish", what()))),
            Err(_) if has_begun.is_empty() => late(format!(
                "all {THREADS} threads for paths wait for filesystems that do not answer"
            )),
            Err(_) => late(format!(
                "its filesystem did not answer within {} s",
                TIMEOUT.as_secs()
            )),
        }
    }

    fn submit(&self, job: Job) -> std::io::Result<()> {
        let mut state = lock(&self.0.state);
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            self.0.work.notify_one();
            return Ok(());
        }
        if state.threads >= THREADS {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let builder = std::thread::Builder::new()
            .name("paths".to_owned())
            .stack_size(STACK);
        match builder.spawn(move || shared.serve()) {
            Ok(_) => state.threads += 1,
            // The existing threads will take the job.
            Err(_) if state.threads > 0 => {}
            Err(error) => {
                state.queue.pop_back();
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Shared {
    fn serve(&self) {
        let _leaving = Leaving(self);
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job(&self.locations);
                state = lock(&self.state);
                continue;
            }
            state.idle += 1;
            let waited = self.work.wait_timeout(state, IDLE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                return;
            }
        }
    }
}

/// Counts a thread as ended, even one that panics.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).threads -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a thread may hang.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Location {
    /// In a file system, by its device number.
    Device(u64),
    /// On the way across a mount point: device and inode of its directory, and its name.
    MountPoint(u64, u64, OsString),
}

/// Which threads are where, and since when.
#[derive(Debug, Default)]
struct Locations {
    inside: Mutex<HashMap<Location, Vec<Instant>>>,
    left: Condvar,
}

/// The path lookups of one job. It is at one location at a time.
#[derive(Debug)]
pub struct Lookup<'a> {
    locations: &'a Locations,
    at: RefCell<Option<(Location, Instant)>>,
    turned_away: Cell<bool>,
}

impl<'a> Lookup<'a> {
    fn new(locations: &'a Locations) -> Self {
        Self {
            locations,
            at: RefCell::new(None),
            turned_away: Cell::new(false),
        }
    }

    /// Resolves `path`, which is absolute, as the kernel would; the lookup stays in its file system. A missing
    /// directory is created where `missing` allows it.
    ///
    /// Errors: the kernel's; TimedOut for a file system that has as many threads as it may.
    pub fn open(&self, path: &Path, missing: Missing) -> std::io::Result<OwnedFd> {
        walk::open(self, path, missing).map(|opened| opened.file)
    }

    /// Resolves `path`, which is absolute, to its own path without links and its metadata. It is not opened for
    /// reading, so that no device or FIFO notices.
    ///
    /// Errors: as of [`Lookup::open`].
    pub fn resolve(&self, path: &Path) -> std::io::Result<Found> {
        use std::os::fd::AsRawFd as _;
        let Opened { file, changeable } = walk::open(self, path, Missing::Refuse)?;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let changeable = changeable
            .map(|entry| std::fs::read_link(format!("/proc/self/fd/{}", entry.as_raw_fd())));
        Ok(Found {
            changeable: changeable.transpose()?,
            path: std::fs::read_link(&link)?,
            metadata: std::fs::metadata(&link)?,
            file,
        })
    }

    /// Whether a file system that has as many threads as it may has refused this lookup: that may pass.
    pub fn was_refused(&self) -> bool {
        self.turned_away.get()
    }

    /// Moves on to `location`, waiting while too many threads are there.
    fn enter(&self, location: Location) -> std::io::Result<()> {
        if matches!(&*self.at.borrow(), Some((here, _)) if *here == location) {
            return Ok(());
        }
        self.leave();
        let mut inside = lock(&self.locations.inside);
        loop {
            let those = inside.entry(location.clone()).or_default();
            if those.len() < INSIDE {
                let now = Instant::now();
                those.push(now);
                *self.at.borrow_mut() = Some((location, now));
                return Ok(());
            }
            let oldest = those.iter().min().map_or(Duration::ZERO, Instant::elapsed);
            if oldest >= SILENCE {
                self.turned_away.set(true);
                let text = format!(
                    "{} calls wait for its filesystem, one for {} s; no more are let in until it answers",
                    those.len(),
                    oldest.as_secs()
                );
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text));
            }
            let waited = self.locations.left.wait_timeout(inside, SILENCE - oldest);
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave(&self) {
        let Some((location, since)) = self.at.borrow_mut().take() else {
            return;
        };
        let mut inside = lock(&self.locations.inside);
        if let Some(those) = inside.get_mut(&location) {
            if let Some(own) = those.iter().position(|one| *one == since) {
                those.swap_remove(own);
            }
            if those.is_empty() {
                inside.remove(&location);
            }
        }
        self.locations.left.notify_one();
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The result of a lookup.
#[derive(Debug)]
pub struct Found {
    /// Its path without links.
    pub path: PathBuf,
    /// The first directory or link on the way that others than root can change, so that the path may lead elsewhere later.
    pub changeable: Option<PathBuf>,
    /// Its metadata.
    pub metadata: std::fs::Metadata,
    /// Its descriptor, opened with O_PATH.
    pub file: OwnedFd,
}

impl Found {
    /// Opens it for reading. Errors: the kernel's.
    pub fn read(&self) -> std::io::Result<std::fs::File> {
        use std::os::fd::AsRawFd as _;
        std::fs::File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Runs `work` with a lookup on this thread, which may hang: for commands and tests.
pub fn with_lookup<T>(work: impl FnOnce(&Lookup<'_>) -> T) -> T {
    work(&Lookup::new(&Locations::default()))
}

/// What to do about a missing directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Fail.
    Refuse,
    /// Create it, with its parents: owned by root, mode 0755.
    Create,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
