//! A trash directory: trees are renamed into it and deleted in the background.
//!
//! Called by the image store and by the daemon's effects, each with a directory of its own on the file system of its
//! trees. Invariants: a tree is gone from its path when [`Trash::remove`] returns; a caller deletes small trees
//! itself and at most [`SMALL_ENTRIES`] of a large one; one thread deletes the rest and ends when nothing is left; the
//! next daemon deletes what a dead one has left, in the background, too.
//! The thread gives each tree a turn of [`TURN`]: a tree that somebody fills as fast as it is emptied holds up no other,
//! and after [`FREE_TURNS`] turns it gets them ever more rarely.
//! Not here: how a tree is deleted.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::remove::{remove, remove_for, remove_some};

/// Entries that a caller deletes itself.
const SMALL_ENTRIES: u64 = 256;
/// Entries of one tree that the thread deletes before it goes on to the next.
const TURN_ENTRIES: u64 = 8192;
/// How long it does so at most: the entries of a tree in use are slow.
const TURN: Duration = Duration::from_millis(250);
/// Turns after which a tree waits for its next one as long as a turn takes, and twice as long after as many again.
const FREE_TURNS: u32 = 64;
/// The longest wait, in turns.
const LONGEST_WAIT: u32 = 16;
/// What a turn counts for that fails at once.
const FAILED_TURN: Duration = Duration::from_secs(4);

/// A trash directory. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Trash {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    serial: AtomicU64,
    worker: Mutex<Worker>,
    /// Signalled when a tree was added.
    added: Condvar,
}

/// The state of the background thread.
#[derive(Debug, Default)]
struct Worker {
    is_alive: bool,
    /// A tree was added since its last round.
    is_due: bool,
}

/// A tree that was not gone after its turn.
#[derive(Debug, Clone, Copy)]
struct Unfinished {
    turns: u32,
    /// When it gets the next one.
    due: Instant,
}

impl Unfinished {
    /// After one more turn, which took `time`.
    fn next(before: Option<Unfinished>, time: Duration) -> Unfinished {
        let turns = before.map_or(0, |before| before.turns).saturating_add(1);
        let wait = match turns / FREE_TURNS {
            0 => 0,
            times => 1_u32.checked_shl(times - 1).unwrap_or(LONGEST_WAIT),
        };
        let due = Instant::now() + time * wait.min(LONGEST_WAIT);
        Unfinished { turns, due }
    }
}

impl Trash {
    /// Makes `directory` (0700) if it is not there, and deletes in the background what lies in it.
    ///
    /// Errors: it cannot be made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let trash = Self {
            inner: Arc::new(Inner {
                directory: directory.to_owned(),
                serial: AtomicU64::new(0),
                worker: Mutex::default(),
                added: Condvar::new(),
            }),
        };
        if std::fs::read_dir(directory)?.next().is_some() {
            trash.delete_later();
        }
        Ok(trash)
    }

    /// Takes the file or tree at `path` out of sight; small ones are deleted on return. An absent one is fine. Blocks.
    ///
    /// Errors: it cannot be renamed. What cannot be deleted is logged and tried again.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let Some(aside) = self.put(path)? else {
            return Ok(());
        };
        match remove_some(&aside, SMALL_ENTRIES) {
            Ok(true) => {}
            Ok(false) => self.delete_later(),
            Err(error) => {
                tracing::warn!(%error, tree = %aside.display(), "cannot delete a tree in the trash; trying again");
                self.delete_later();
            }
        }
        Ok(())
    }

    /// Takes the tree at `path` out of sight and deletes all of it in the background. An absent one is fine.
    ///
    /// Errors: it cannot be renamed.
    pub fn remove_later(&self, path: &Path) -> io::Result<()> {
        if self.put(path)?.is_some() {
            self.delete_later();
        }
        Ok(())
    }

    /// Renames `path` into the directory. `None` when there is nothing, or when it had to be deleted where it was.
    fn put(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        loop {
            let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
            let aside = self.inner.directory.join(serial.to_string());
            match renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(Some(aside)),
                Err(Errno::NOENT) => return Ok(None),
                // An older daemon's.
                Err(Errno::EXIST) => {}
                // Another file system.
                Err(Errno::XDEV) => return remove(path).map(|()| None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn delete_later(&self) {
        let mut worker = lock(&self.inner.worker);
        worker.is_due = true;
        if worker.is_alive {
            self.inner.added.notify_one();
            return;
        }
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name("trash".to_owned());
        match thread.spawn(move || inner.work()) {
            Ok(_) => worker.is_alive = true,
            Err(error) => {
                tracing::warn!(%error, directory = %self.inner.directory.display(), "cannot start a thread to delete trees; they stay until the next removal");
            }
        }
    }
}

impl Inner {
    /// Deletes what lies in the directory, until nothing is left and nothing new was put in.
    fn work(&self) {
        let mut unfinished = HashMap::new();
        while self.wait(&unfinished) {
            unfinished = self.take_turns(unfinished);
        }
    }

    /// Waits until a tree was added or one may have its next turn. False when there is none: the thread is to end.
    fn wait(&self, unfinished: &HashMap<OsString, Unfinished>) -> bool {
        let next = unfinished.values().map(|tree| tree.due).min();
        let mut worker = lock(&self.worker);
        loop {
            if std::mem::take(&mut worker.is_due) {
                return true;
            }
            let Some(next) = next else {
                worker.is_alive = false;
                return false;
            };
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let woken = self.added.wait_timeout(worker, left);
            (worker, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives each tree that is due one turn. Returns those that are not gone.
    fn take_turns(
        &self,
        mut before: HashMap<OsString, Unfinished>,
    ) -> HashMap<OsString, Unfinished> {
        let mut left = HashMap::new();
        let entries = std::fs::read_dir(&self.directory);
        for entry in entries.into_iter().flatten().flatten() {
            let tree = before.remove(&entry.file_name());
            let unfinished = match tree {
                Some(tree) if tree.due > Instant::now() => Some(tree),
                tree => turn(&entry.path(), tree),
            };
            left.extend(unfinished.map(|tree| (entry.file_name(), tree)));
        }
        left
    }
}

/// One turn of the tree at `path`. `None` when it is gone.
fn turn(path: &Path, before: Option<Unfinished>) -> Option<Unfinished> {
    let begun = Instant::now();
    let error = match remove_for(path, TURN_ENTRIES, TURN) {
        Ok(true) => return None,
        Ok(false) => {
            let after = Unfinished::next(before, begun.elapsed());
            if after.turns == FREE_TURNS {
                tracing::warn!(tree = %path.display(), turns = FREE_TURNS, "a tree in the trash is very large or still written to; its deletion goes on slowly");
            }
            return Some(after);
        }
        Err(error) => error,
    };
    if before.is_none() {
        tracing::warn!(%error, tree = %path.display(), "cannot delete a tree in the trash; trying again from time to time");
    }
    let done = before.map_or(0, |before| before.turns);
    let before = Unfinished {
        turns: done.saturating_add(FREE_TURNS - 1),
        due: begun,
    };
    let time = begun.elapsed().max(FAILED_TURN);
    Some(Unfinished::next(Some(before), time))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;

    use super::*;

    fn tree(at: &Path, files: usize) {
        fs::create_dir(at).unwrap();
        for number in 0..files {
            fs::write(at.join(number.to_string()), "").unwrap();
        }
    }

    fn wait_for_empty(directory: &Path) {
        let begun = Instant::now();
        while fs::read_dir(directory).unwrap().next().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(120), "not deleted");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn small_trees_are_gone_at_once_and_large_ones_soon() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        let trash = Trash::open(&root.join("trash")).unwrap();
        tree(&root.join("small"), 100);
        trash.remove(&root.join("small")).unwrap();
        assert!(!root.join("small").exists());
        assert_eq!(fs::read_dir(root.join("trash")).unwrap().count(), 0);
        for name in ["a", "b", "c"] {
            tree(&root.join(name), 1_000);
            trash.remove(&root.join(name)).unwrap();
            assert!(!root.join(name).exists());
        }
        trash.remove(&root.join("none")).unwrap();
        wait_for_empty(&root.join("trash"));
    }

    #[test]
    fn what_a_dead_daemon_left_is_deleted() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir(root.join("trash")).unwrap();
        tree(&root.join("trash/0"), 1_000);
        let trash = Trash::open(&root.join("trash")).unwrap();
        tree(&root.join("new"), 10);
        trash.remove_later(&root.join("new")).unwrap();
        wait_for_empty(&root.join("trash"));
    }

    /// However many entries it has, and whoever adds more of them.
    #[test]
    fn a_tree_without_an_end_holds_up_no_other() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("trash");
        let trash = Trash::open(&directory).unwrap();
        let entries = usize::try_from(TURN_ENTRIES).unwrap() + 1_000;
        tree(&directory.join("endless"), entries);
        for name in ["a", "b", "c"] {
            tree(&directory.join(name), 10);
        }
        let left = trash.inner.take_turns(HashMap::new());
        let names: Vec<_> = left.keys().collect();
        assert_eq!(names, ["endless"]);
        assert!(directory.join("endless").exists());
        for name in ["a", "b", "c"] {
            assert!(!directory.join(name).exists(), "{name}");
        }
        trash.delete_later();
        wait_for_empty(&directory);
    }

    #[test]
    fn a_tree_that_does_not_end_gets_its_turns_ever_more_rarely() {
        let time = Duration::from_secs(100);
        let waits = |turns: u32| {
            let due = Instant::now();
            let after = Unfinished::next(Some(Unfinished { turns, due }), time);
            let wait = after.due.saturating_duration_since(due);
            u32::try_from(wait.as_secs() / 100).unwrap()
        };
        let turns = [0, 62, 63, 127, 191, 255, 319, 9_999, u32::MAX];
        assert_eq!(turns.map(waits), [0, 0, 1, 2, 4, 8, 16, 16, 16]);
    }
}
