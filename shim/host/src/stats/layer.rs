//! The size of a container's writable layer: measured by a walk, cached for a while.
//!
//! Called by: `stats`, on a blocking thread. Calls: the file system.
//! Invariants: no link leads out of the layer, though the container writes in it meanwhile; a request never waits for a
//! large tree: two threads walk those in the background, one of them those that take long, the more rarely the longer it
//! takes; no lock is held while the disk is read.
//! Must not know: image layers, quotas.

mod walk;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_lifecycle::LayerUsage;
use coracle_spec::id::ContainerId;

use walk::walk;

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
/// A walk that takes longer waits for its turn among others that do.
const QUICK_WALK: Duration = Duration::from_secs(2);

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
    /// The budget of each of the `parts` in which a fresh request is answered.
    pub(super) fn of_one_in(parts: usize) -> Budget {
        Budget(REQUEST_ENTRIES / u64::try_from(parts.max(1)).unwrap_or(u64::MAX))
    }
}

#[derive(Default)]
struct Queue {
    /// Those that a thread walks one after the other: first of all what may be done quickly, then what is not.
    lanes: [Lane; 2],
    /// It is queued or being walked.
    taken: HashSet<ContainerId>,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<(ContainerId, PathBuf)>,
    has_walker: bool,
}

/// How long a walk of each lane may take.
const LONGEST: [Duration; 2] = [QUICK_WALK, LONGEST_WALK];

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
            let (found, complete) =
                walk(directory, budget.0.min(SMALL_ENTRIES), QUICK_WALK).ok()?;
            budget.0 = budget.0.saturating_sub(found.entries.max(1));
            if complete {
                lock(&self.known).insert(id.clone(), found);
                return Some(found.usage);
            }
        }
        self.later(id, directory);
        known.map(|known| known.usage)
    }

    /// Drops what is known of one layer.
    pub(super) fn forget(&self, id: &ContainerId) {
        lock(&self.known).remove(id);
    }

    /// The bytes of all that are cached.
    pub(super) fn bytes(&self) -> u64 {
        let known = lock(&self.known);
        known.values().map(|known| known.usage.bytes).sum()
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
        if lock(&self.queue).taken.insert(id.clone()) {
            let took = lock(&self.known).get(id).map(|known| known.took);
            let is_slow = took.is_some_and(|took| took >= QUICK_WALK);
            self.wait_in(usize::from(is_slow), id.clone(), directory.to_owned());
        }
    }

    /// Queues a tree, and starts the lane's thread if it has none.
    fn wait_in(&self, lane: usize, id: ContainerId, directory: PathBuf) {
        let mut queue = lock(&self.queue);
        let lane_of = &mut queue.lanes[lane];
        lane_of.waiting.push_back((id, directory));
        if std::mem::replace(&mut lane_of.has_walker, true) {
            return;
        }
        let layers = self.clone();
        let walker = std::thread::Builder::new().name("layers".to_owned());
        if let Err(error) = walker.spawn(move || layers.work(lane)) {
            tracing::warn!(%error, "no thread to look at writable layers");
            let left = std::mem::take(&mut queue.lanes[lane]).waiting;
            for (id, _) in left {
                queue.taken.remove(&id);
            }
        }
    }

    /// Walks the trees of a lane one after the other; ends when there are none. What takes too long for the first lane goes
    /// to the other one, so that nobody's large tree keeps others waiting.
    fn work(&self, lane: usize) {
        while let Some((id, directory)) = self.next(lane) {
            match walk(&directory, u64::MAX, LONGEST[lane]) {
                Ok((_, false)) if lane == 0 => {
                    self.wait_in(1, id, directory);
                    continue;
                }
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

    fn next(&self, lane: usize) -> Option<(ContainerId, PathBuf)> {
        let mut queue = lock(&self.queue);
        let lane = &mut queue.lanes[lane];
        let next = lane.waiting.pop_front();
        lane.has_walker = next.is_some();
        next
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{Mode, open};

    use super::walk::directory_flags;
    use super::*;

    /// Longer than anything takes here, on however slow a machine.
    const LONG: Duration = Duration::from_secs(600);

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            Tree::below(&std::env::temp_dir(), name)
        }

        /// In memory, for hundreds of thousands of entries: a disk takes a minute for those.
        fn in_memory(name: &str) -> Tree {
            Tree::below(Path::new("/dev/shm"), name)
        }

        fn below(parent: &Path, name: &str) -> Tree {
            let path = parent.join(format!("coracle-layer-{name}-{}", std::process::id()));
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
        let (found, complete) = walk(&tree.0, u64::MAX, LONG).unwrap();
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
        let (found, complete) = walk(&tree.0, u64::MAX, LONG).unwrap();
        assert!(complete);
        assert_eq!(found.usage.inodes, 121);
    }

    /// Memory of this process, and the most that it was. KiB.
    fn memory(field: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// In a process of its own: the memory that other tests take would count.
    #[test]
    fn the_memory_of_a_walk_is_bounded_and_its_count_is_right() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact"])
            .arg("stats::layer::tests::a_large_walk_takes_little_memory")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    #[test]
    #[ignore = "it measures its process; the test above runs it"]
    fn a_large_walk_takes_little_memory() {
        const DIRECTORIES: u64 = 100_000;
        const LINKED: u64 = 150_000;
        let tree = Tree::in_memory("bounded");
        fs::create_dir(tree.0.join("wide")).unwrap();
        fs::create_dir(tree.0.join("linked")).unwrap();
        fs::create_dir(tree.0.join("again")).unwrap();
        let wide = open(tree.0.join("wide"), directory_flags(), Mode::empty()).unwrap();
        for number in 0..DIRECTORIES {
            rustix::fs::mkdirat(&wide, format!("{number:0>250}"), Mode::RWXU).unwrap();
        }
        // Below some of them it goes on.
        for number in (0..DIRECTORIES).step_by(1000) {
            rustix::fs::mkdirat(&wide, format!("{number:0>250}/below"), Mode::RWXU).unwrap();
        }
        for number in 0..LINKED {
            let name = tree.0.join(format!("linked/{number}"));
            fs::File::create(&name).unwrap();
            fs::hard_link(name, tree.0.join(format!("again/{number}"))).unwrap();
        }
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory("VmRSS:");
        let (found, complete) = walk(&tree.0, u64::MAX, LONG).unwrap();
        let grown = memory("VmHWM:").saturating_sub(before);
        assert!(complete);
        let directories = 4 + DIRECTORIES + DIRECTORIES / 1000;
        assert_eq!(found.usage.inodes, directories + LINKED);
        assert_eq!(found.entries, directories - 1 + 2 * LINKED);
        assert!(grown < 16 << 10, "the walk took {grown} KiB");
    }

    #[test]
    fn a_tree_that_takes_long_keeps_no_other_waiting() {
        let tree = Tree::new("lanes");
        fs::write(tree.0.join("file"), "x").unwrap();
        let layers = Layers::default();
        let slow = "b".repeat(64).parse::<ContainerId>().unwrap();
        // As if a thread was walking a large tree.
        lock(&layers.queue).lanes[1].has_walker = true;
        lock(&layers.queue).taken.insert(slow);
        assert_eq!(layers.usage(&id(), &tree.0, &mut Budget(0)), None);
        let end = Instant::now() + LONG;
        while layers.len() == 0 {
            assert!(Instant::now() < end, "never walked");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_large_tree_is_left_to_the_background() {
        let tree = Tree::new("large");
        for number in 0..SMALL_ENTRIES + 5 {
            fs::write(tree.0.join(number.to_string()), "").unwrap();
        }
        let layers = Layers::default();
        let mut budget = Budget::of_one_in(1);
        assert_eq!(layers.usage(&id(), &tree.0, &mut budget), None);
        assert_eq!(budget.0, REQUEST_ENTRIES - SMALL_ENTRIES);
        let end = Instant::now() + LONG;
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
        assert_eq!(layers.usage(&id(), &gone, &mut Budget::of_one_in(1)), None);
        assert_eq!(layers.usage(&id(), &tree.0, &mut Budget(0)), None);
    }
}
