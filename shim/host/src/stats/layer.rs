//! The size of a container's writable layer: measured by a walk, cached for a while.
//!
//! Called by: `stats`, on a blocking thread. Calls: the file system.
//! Invariants: no link leads out of the layer, though the container writes in it meanwhile; a request never waits for a
//! large tree: one thread walks those in the background, the more rarely the longer it takes; no lock is held while the
//! disk is read.
//! Must not know: image layers, quotas.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_lifecycle::LayerUsage;
use coracle_spec::id::ContainerId;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, open, openat2, statat};

/// How old a result for a small tree may be.
const SMALL_AGE: Duration = Duration::from_secs(1);
/// How old a result for a larger tree may be before it is walked again, at least.
const LARGE_AGE: Duration = Duration::from_secs(10);
/// The pause before a large tree is walked again, as a multiple of its last walk.
const REST: u32 = 20;
/// A tree with at most this many entries is small.
const SMALL_ENTRIES: u64 = 2_000;
/// Entries that one request may walk itself, over all containers it asks about.
const REQUEST_ENTRIES: u64 = 50_000;
/// The time limit of a walk; entries that it has not reached by then are not counted.
const LONGEST_WALK: Duration = Duration::from_secs(60);
/// Directories below this depth are counted, but not their contents.
const MAX_DEPTH: usize = 4_096;
/// Most directories that a walk remembers for later.
const MAX_PENDING: usize = 1 << 20;
/// The longest path that is opened in one step, in bytes: PATH_MAX with room.
const STEP_BYTES: usize = 3_800;

/// The result of a walk.
#[derive(Clone, Copy, Debug)]
struct Known {
    usage: LayerUsage,
    seen: Instant,
    took: Duration,
    entries: u64,
}

impl Known {
    fn is_small(&self) -> bool {
        self.entries <= SMALL_ENTRIES
    }

    fn is_fresh(&self) -> bool {
        let limit = if self.is_small() {
            SMALL_AGE
        } else {
            LARGE_AGE.max(self.took * REST)
        };
        self.seen.elapsed() < limit
    }
}

/// The entries that one request may still walk itself.
pub(super) struct Budget(u64);

impl Budget {
    /// The budget of a fresh request.
    pub(super) fn new() -> Budget {
        Budget(REQUEST_ENTRIES)
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(ContainerId, PathBuf)>,
    /// It is queued or being walked.
    taken: HashSet<ContainerId>,
    has_walker: bool,
}

/// The writable layers of all containers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Layers {
    known: Arc<Mutex<HashMap<ContainerId, Known>>>,
    queue: Arc<Mutex<Queue>>,
}

impl Layers {
    /// The size of the layer in `directory`; `None` until its first walk. May walk a small tree; a large one is left to
    /// the background. Blocks.
    pub(super) fn usage(
        &self,
        id: &ContainerId,
        directory: &Path,
        budget: &mut Budget,
    ) -> Option<LayerUsage> {
        let known = lock(&self.known).get(id).copied();
        if let Some(known) = known.filter(Known::is_fresh) {
            return Some(known.usage);
        }
        if known.is_none_or(|known| known.is_small()) && budget.0 > 0 {
            let (found, complete) = walk(directory, budget.0.min(SMALL_ENTRIES)).ok()?;
            budget.0 = budget.0.saturating_sub(found.entries.max(1));
            if complete {
                lock(&self.known).insert(id.clone(), found);
                return Some(found.usage);
            }
        }
        self.later(id, directory);
        known.map(|known| known.usage)
    }

    /// Drops containers that are gone.
    pub(super) fn retain(&self, exists: impl Fn(&ContainerId) -> bool) {
        lock(&self.known).retain(|id, _| exists(id));
    }

    /// The number of cached layers.
    pub(super) fn len(&self) -> usize {
        lock(&self.known).len()
    }

    fn later(&self, id: &ContainerId, directory: &Path) {
        let mut queue = lock(&self.queue);
        if !queue.taken.insert(id.clone()) {
            return;
        }
        queue.waiting.push_back((id.clone(), directory.to_owned()));
        if std::mem::replace(&mut queue.has_walker, true) {
            return;
        }
        let layers = self.clone();
        let walker = std::thread::Builder::new().name("layers".to_owned());
        if let Err(error) = walker.spawn(move || layers.work()) {
            tracing::warn!(%error, "no thread to look at writable layers");
            *queue = Queue::default();
        }
    }

    /// Walks the queued trees one after the other; ends when the queue is empty.
    fn work(&self) {
        while let Some((id, directory)) = self.next() {
            match walk(&directory, u64::MAX) {
                Ok((found, complete)) => {
                    if !complete {
                        tracing::warn!(container = %id, "the writable layer is too large to count; its usage is a part of it");
                    }
                    lock(&self.known).insert(id.clone(), found);
                }
                Err(error) => {
                    tracing::debug!(container = %id, %error, "the writable layer was not walked")
                }
            }
            lock(&self.queue).taken.remove(&id);
        }
    }

    fn next(&self) -> Option<(ContainerId, PathBuf)> {
        let mut queue = lock(&self.queue);
        let next = queue.waiting.pop_front();
        queue.has_walker = next.is_some();
        next
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory that was found: the index of its parent in [`Walker::found`], its depth and its name.
struct Found {
    parent: usize,
    depth: usize,
    name: Box<OsStr>,
}

struct Walker {
    root: OwnedFd,
    /// Ancestors of the current directory and directories still to be entered, in the order found.
    found: Vec<Found>,
    /// Indexes in `found` that are still to be entered, the next one last.
    pending: Vec<usize>,
    /// Inodes with several names that were counted already, by device and number.
    linked: HashSet<(u64, u64)>,
    usage: LayerUsage,
    entries: u64,
    complete: bool,
}

/// Counts the tree in `directory`, up to `limit` entries; the second value tells whether that was all of it.
fn walk(directory: &Path, limit: u64) -> io::Result<(Known, bool)> {
    let begun = Instant::now();
    let root = open(directory, directory_flags(), Mode::empty())?;
    let mut walker = Walker {
        found: Vec::new(),
        pending: Vec::new(),
        linked: HashSet::new(),
        usage: LayerUsage::default(),
        entries: 0,
        complete: true,
        root,
    };
    walker.count(&rustix::fs::fstat(&walker.root)?);
    let whole = walker.root.try_clone()?;
    walker.list(Dir::new(whole)?, None, limit)?;
    while let Some(at) = walker.pending.pop() {
        if walker.entries >= limit || begun.elapsed() > LONGEST_WALK {
            walker.complete = false;
            break;
        }
        walker.found.truncate(at + 1);
        // Entries that vanished or were replaced meanwhile are skipped.
        if let Ok(opened) = walker.enter(at) {
            walker.list(Dir::new(opened)?, Some(at), limit)?;
        }
    }
    let known = Known {
        usage: LayerUsage {
            at: super::now(),
            ..walker.usage
        },
        seen: Instant::now(),
        took: begun.elapsed(),
        entries: walker.entries,
    };
    Ok((known, walker.complete))
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Walker {
    fn count(&mut self, stat: &Stat) {
        let several = stat.st_nlink > 1 && !FileType::from_raw_mode(stat.st_mode).is_dir();
        if several && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }

    /// Counts the entries of a directory and remembers its subdirectories.
    fn list(&mut self, mut directory: Dir, at: Option<usize>, limit: u64) -> io::Result<()> {
        let depth = at.map_or(1, |at| self.found[at].depth + 1);
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.entries >= limit {
                self.complete = false;
                break;
            }
            self.entries += 1;
            let Ok(stat) = statat(directory.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            self.count(&stat);
            if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                continue;
            }
            if depth > MAX_DEPTH || self.pending.len() >= MAX_PENDING {
                self.complete = false;
                continue;
            }
            self.pending.push(self.found.len());
            self.found.push(Found {
                parent: at.unwrap_or(usize::MAX),
                depth,
                name: OsStr::from_bytes(name.to_bytes()).into(),
            });
        }
        Ok(())
    }

    /// Opens a directory by the names from the root, in steps that the kernel accepts; follows no link.
    fn enter(&self, at: usize) -> io::Result<OwnedFd> {
        let mut names = Vec::new();
        let mut next = Some(&self.found[at]);
        while let Some(found) = next {
            names.push(&*found.name);
            next = self.found.get(found.parent);
        }
        let mut opened: Option<OwnedFd> = None;
        let mut step = PathBuf::new();
        while let Some(name) = names.pop() {
            step.push(name);
            let room = names
                .last()
                .is_some_and(|next| step.as_os_str().len() + next.len() < STEP_BYTES);
            if room {
                continue;
            }
            let from = opened.as_ref().unwrap_or(&self.root);
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let reached = openat2(
                from.as_fd(),
                &step,
                directory_flags(),
                Mode::empty(),
                resolve,
            )?;
            opened = Some(reached);
            step.clear();
        }
        opened.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let path =
                std::env::temp_dir().join(format!("coracle-layer-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Tree(path)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn id() -> ContainerId {
        "a".repeat(64).parse().unwrap()
    }

    #[test]
    fn files_count_by_blocks_and_each_inode_once() {
        let tree = Tree::new("count");
        let at = |name: &str| tree.0.join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/file"), vec![7; 100_000]).unwrap();
        fs::hard_link(at("a/file"), at("a/b/again")).unwrap();
        fs::File::create(at("sparse"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        symlink("/usr", at("a/out")).unwrap();
        let (found, complete) = walk(&tree.0, u64::MAX).unwrap();
        assert!(complete);
        // The root, a, b, file, sparse, out; `again` is `file`.
        assert_eq!((found.usage.inodes, found.entries), (6, 6));
        assert!(
            (100_000..200_000).contains(&found.usage.bytes),
            "{}",
            found.usage.bytes
        );
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_walked_to_its_end() {
        let tree = Tree::new("deep");
        let mut fd = open(&tree.0, directory_flags(), Mode::empty()).unwrap();
        let name = "n".repeat(200);
        for _ in 0..60 {
            rustix::fs::mkdirat(&fd, &name, Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&fd, "sibling", Mode::RWXU).unwrap();
            fd = rustix::fs::openat(&fd, &name, directory_flags(), Mode::empty()).unwrap();
        }
        let (found, complete) = walk(&tree.0, u64::MAX).unwrap();
        assert!(complete);
        assert_eq!(found.usage.inodes, 121);
    }

    #[test]
    fn a_large_tree_is_left_to_the_background() {
        let tree = Tree::new("large");
        for number in 0..SMALL_ENTRIES + 5 {
            fs::write(tree.0.join(number.to_string()), "").unwrap();
        }
        let layers = Layers::default();
        let mut budget = Budget::new();
        assert_eq!(layers.usage(&id(), &tree.0, &mut budget), None);
        assert_eq!(budget.0, REQUEST_ENTRIES - SMALL_ENTRIES);
        let end = Instant::now() + Duration::from_secs(10);
        let usage = loop {
            match layers.usage(&id(), &tree.0, &mut Budget(0)) {
                Some(usage) => break usage,
                None => assert!(Instant::now() < end, "never walked"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(usage.inodes, SMALL_ENTRIES + 6);
        assert!(usage.at > 0);
        layers.retain(|_| false);
        assert_eq!(layers.len(), 0);
    }

    #[test]
    fn a_spent_budget_and_an_absent_layer_give_no_answer_at_once() {
        let tree = Tree::new("absent");
        let layers = Layers::default();
        let gone = tree.0.join("gone");
        assert_eq!(layers.usage(&id(), &gone, &mut Budget::new()), None);
        assert_eq!(layers.usage(&id(), &tree.0, &mut Budget(0)), None);
    }
}
