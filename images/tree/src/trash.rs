//! A trash directory: trees are renamed into it and deleted in the background.
//!
//! Called by the image store and by the daemon's effects, each with a directory of its own on the file system of its
//! trees. Invariants: a tree is gone from its path when [`Trash::remove`] returns; a caller deletes small trees
//! itself and at most [`SMALL_ENTRIES`] of a large one; one thread deletes the rest and ends when nothing is left; the
//! next daemon deletes what a dead one has left, in the background, too.
//! Not here: how a tree is deleted.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::remove::{remove, remove_some};

/// Entries that a caller deletes itself.
const SMALL_ENTRIES: u64 = 256;

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
}

/// The state of the background thread.
#[derive(Debug, Default)]
struct Worker {
    is_alive: bool,
    /// A tree was added since its last round.
    is_due: bool,
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
    /// Deletes what lies in the directory, until nothing new was put in.
    fn work(&self) {
        while self.is_due() {
            let entries = std::fs::read_dir(&self.directory);
            for entry in entries.into_iter().flatten().flatten() {
                if let Err(error) = remove(&entry.path()) {
                    tracing::warn!(%error, tree = %entry.path().display(), "cannot delete a tree in the trash; the next start tries again");
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        let mut worker = lock(&self.worker);
        worker.is_alive = std::mem::take(&mut worker.is_due);
        worker.is_alive
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

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
}
