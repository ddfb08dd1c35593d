//! cgroup v2: one tree; controllers are enabled from the root down to the parent of the cgroup.
//! Called by this crate only. Invariant: only leaves have processes, so no controller is ever
//! enabled in a cgroup that has some.
//! Source: Documentation/admin-guide/cgroup-v2.rst of Linux.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::bpf;
use super::change::Change;
use super::devices::Policy;
use super::error::Error;
use super::files::{self, join};
use super::limits::{Limits, hugepage_writes};

/// Controllers without which no container is run.
pub(super) const REQUIRED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// Controllers that are enabled where the node has them.
const OPTIONAL: [&str; 2] = ["io", "hugetlb"];

/// The unified tree.
#[derive(Debug)]
pub(super) struct V2 {
    pub(super) mount: PathBuf,
    /// Controllers of the root that we want, in the order of [`REQUIRED`], then [`OPTIONAL`].
    pub(super) wanted: Vec<&'static str>,
    /// Sizes of huge pages, as cgroup files name them.
    pub(super) page_sizes: Vec<String>,
    /// Device programs that are loaded.
    pub(super) programs: bpf::Programs,
    /// Whether the mount keeps a cgroup namespace from writing the limits at its root.
    pub(super) nsdelegate: bool,
}

impl V2 {
    /// The tree mounted on `mount`, and the sizes of huge pages of this node.
    pub(super) fn open(mount: PathBuf, page_sizes: Vec<String>) -> Result<Self, Error> {
        let offered = files::read(&mount.join("cgroup.controllers"))?;
        let wanted = REQUIRED
            .into_iter()
            .chain(OPTIONAL)
            .filter(|name| has(&offered, name))
            .collect();
        Ok(Self {
            mount,
            wanted,
            page_sizes,
            programs: bpf::Programs::default(),
            nsdelegate: false,
        })
    }

    /// The tree of a hybrid node, in which only the hugetlb controller is used.
    pub(super) fn beside_v1(mount: PathBuf) -> Result<Self, Error> {
        let mut tree = Self::open(mount, Vec::new())?;
        tree.wanted.retain(|name| *name == "hugetlb");
        Ok(tree)
    }

    /// Required controllers that the root lacks.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        REQUIRED
            .into_iter()
            .filter(|name| !self.wanted.contains(name))
            .collect()
    }

    /// The directory of `path`.
    pub(super) fn dir(&self, path: &str) -> PathBuf {
        join(&self.mount, path)
    }

    /// The directory of `path`, if huge pages are accounted there.
    pub(super) fn hugetlb_dir(&self, path: &str) -> Option<PathBuf> {
        let is_offered = |dir: &PathBuf| {
            files::read(&dir.join("cgroup.controllers")).is_ok_and(|on| has(&on, "hugetlb"))
        };
        let is_wanted = self.wanted.contains(&"hugetlb");
        Some(self.dir(path)).filter(|dir| is_wanted && is_offered(dir))
    }

    /// Creates `path` and sets `limits`; on failure removes the cgroup if it was created here.
    pub(super) fn create(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        self.open_parent_of(path)?;
        let dir = self.dir(path);
        let is_new = files::make_dir(&dir)?;
        let done = self.set(path, limits, is_new);
        if done.is_err() && is_new {
            // Best effort: the first error is the one to report.
            let _ = std::fs::remove_dir(&dir);
        }
        done
    }

    /// Creates the parent of `path` if needed and enables all wanted controllers down to it.
    pub(super) fn open_parent_of(&self, path: &str) -> Result<(), Error> {
        let dir = self.dir(path);
        self.open_parent(path, dir.parent().unwrap_or(&self.mount))
    }

    /// Creates `parent` if needed and enables all wanted controllers for its children.
    fn open_parent(&self, path: &str, parent: &Path) -> Result<(), Error> {
        let enabled = |dir: &Path| files::read(&dir.join("cgroup.subtree_control"));
        if enabled(parent).is_ok_and(|on| self.wanted.iter().all(|name| has(&on, name))) {
            return Ok(());
        }
        let below = parent.strip_prefix(&self.mount).unwrap_or(Path::new(""));
        let mut dir = self.mount.clone();
        for part in std::iter::once(None).chain(below.components().map(Some)) {
            if let Some(part) = part {
                dir.push(part);
                files::make_dir(&dir)?;
            }
            self.enable(&dir, &enabled(&dir)?)?;
        }
        let on = enabled(parent)?;
        match REQUIRED
            .into_iter()
            .find(|name| self.wanted.contains(name) && !has(&on, name))
        {
            Some(controller) => Err(Error::MissingController {
                path: path.to_owned(),
                controller,
                dir: parent.to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn enable(&self, dir: &Path, on: &str) -> Result<(), Error> {
        let offered = files::read(&dir.join("cgroup.controllers"))?;
        let off = self
            .wanted
            .iter()
            .filter(|name| has(&offered, name) && !has(on, name));
        let switches: Vec<String> = off.map(|name| format!("+{name}")).collect();
        match switches.is_empty() {
            true => Ok(()),
            false => files::write(&dir.join("cgroup.subtree_control"), &switches.join(" ")),
        }
    }

    /// Writes every limit that is set; rolls them back if one is refused, unless the cgroup `is_new`.
    pub(super) fn set(&self, path: &str, limits: &Limits, is_new: bool) -> Result<(), Error> {
        let dir = self.dir(path);
        let limits = completed(&dir, limits)?;
        let mut files = writes(path, &limits)?;
        files.retain(|(file, _)| *file != "memory.swap.max" || dir.join(file).exists());
        check_unified(path, &dir, &limits)?;
        let mut files: Vec<_> = files
            .into_iter()
            .map(|(file, value)| (dir.join(file), value))
            .collect();
        if !limits.hugepages.is_empty()
            && let Some(hugetlb) = self.hugetlb_dir(path)
        {
            files.extend(hugepage_writes(path, &hugetlb, "max", &limits.hugepages)?);
        }
        let unified = limits.unified.iter();
        files.extend(unified.map(|(key, value)| (dir.join(key), value.clone())));
        if !is_new {
            make_room(path, &dir, &limits)?;
        }
        let mut change = Change::new(is_new);
        let mut done = files
            .iter()
            .try_for_each(|(file, value)| change.put(file, value));
        if let (Ok(()), Some(rules)) = (&done, &limits.devices) {
            done = self.programs.apply(&dir, &Policy::of(rules));
        }
        change.end(done)
    }

    /// How many processes the OOM killer took from this cgroup and those below it.
    ///
    /// `memory.events`, not `memory.events.local`: the kernel counts a kill in the victim's cgroup, so a
    /// container whose processes are in child cgroups (systemd as its first process) would count none,
    /// although with `memory.oom.group` its limit kills all of them. A kill by a limit that the workload
    /// set in a child cgroup counts, too; that ended the container only if its first process was the
    /// victim, which its exit status shows.
    pub(super) fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        files::read_keyed(&self.dir(path).join("memory.events"), "oom_kill")
    }
}

/// Completes `limits` with present values that share a file with a new one: a new period keeps the
/// quota, a new limit of memory plus swap refers to the present memory limit.
fn completed<'a>(dir: &Path, limits: &'a Limits) -> Result<Cow<'a, Limits>, Error> {
    let mut limits = Cow::Borrowed(limits);
    if limits.cpu_period.is_some() && limits.cpu_quota.is_none() {
        let text = files::read(&dir.join("cpu.max"))?;
        let quota = text.split(' ').next().and_then(|quota| quota.parse().ok());
        limits.to_mut().cpu_quota = Some(quota.unwrap_or(-1));
    }
    if limits.memory_swap_bytes.is_some_and(|total| total >= 0) && limits.memory_bytes.is_none() {
        let memory = files::read_number(&dir.join("memory.max"))?;
        let memory = memory.and_then(|bytes| i64::try_from(bytes).ok());
        limits.to_mut().memory_bytes = Some(memory.unwrap_or(-1));
    }
    Ok(limits)
}

/// Refuses a memory limit below the usage, because the kernel would enforce it by killing. Reclaimable
/// memory (page cache) does not count: v1 kernels reclaim before they refuse, too.
fn make_room(path: &str, dir: &Path, limits: &Limits) -> Result<(), Error> {
    let limit = limits
        .memory_bytes
        .and_then(|bytes| u64::try_from(bytes).ok());
    let Some(limit) = limit else { return Ok(()) };
    let current = || files::read_number(&dir.join("memory.current"));
    let over = current()?.unwrap_or_default().saturating_sub(limit);
    if over == 0 {
        return Ok(());
    }
    // Fails when less could be reclaimed, or on a kernel before 5.19: the next reading shows it.
    let _ = files::write(&dir.join("memory.reclaim"), &over.to_string());
    match current()?.unwrap_or_default() {
        usage if usage > limit => Err(Error::BelowUsage {
            path: path.to_owned(),
            limit,
            usage,
        }),
        _ => Ok(()),
    }
}

/// Checks that unified keys name existing files of controllers.
fn check_unified(path: &str, dir: &Path, limits: &Limits) -> Result<(), Error> {
    for key in limits.unified.keys() {
        let why = if key.contains('/') || !key.contains('.') || key.starts_with("cgroup.") {
            "it is not a file of a controller"
        } else if !dir.join(key).exists() {
            "this cgroup has no such file"
        } else {
            continue;
        };
        return Err(Error::Unsupported {
            path: path.to_owned(),
            key: key.clone(),
            why,
        });
    }
    Ok(())
}

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|item| item == name)
}

/// The files that `limits` (completed) asks for and what to write there, in order.
/// Errors: a limit of memory and swap together that is none.
fn writes(path: &str, limits: &Limits) -> Result<Vec<(&'static str, String)>, Error> {
    let or_max =
        |bytes: i64| u64::try_from(bytes).map_or("max".to_owned(), |bytes| bytes.to_string());
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        files.push(("cpu.weight", weight(shares).to_string()));
    }
    if let Some(quota) = limits.cpu_quota.map(or_max) {
        let period = limits.cpu_period.map(|period| format!(" {period}"));
        files.push(("cpu.max", quota + &period.unwrap_or_default()));
    }
    files.extend(
        limits
            .memory_bytes
            .map(|bytes| ("memory.max", or_max(bytes))),
    );
    if let Some(total) = limits.memory_swap_bytes {
        let swap = swap(limits.memory_bytes, total).map_err(|why| Error::Unsupported {
            path: path.to_owned(),
            key: "the limit of memory and swap".to_owned(),
            why,
        })?;
        files.push(("memory.swap.max", or_max(swap)));
    }
    let group = limits
        .memory_oom_group
        .map(|group| u8::from(group).to_string());
    files.extend(group.map(|group| ("memory.oom.group", group)));
    files.extend(limits.pids_max().map(|max| ("pids.max", max)));
    files.extend(limits.cpuset_cpus.clone().map(|cpus| ("cpuset.cpus", cpus)));
    files.extend(limits.cpuset_mems.clone().map(|mems| ("cpuset.mems", mems)));
    Ok(files)
}

/// v1 and CRI count memory and swap together, v2 swap alone. Negative means no limit.
fn swap(memory: Option<i64>, total: i64) -> Result<i64, &'static str> {
    match memory {
        _ if total < 0 => Ok(-1),
        None | Some(..0) => Err("there is no memory limit to subtract"),
        Some(memory) if memory > total => Err("it is less than the memory limit"),
        Some(memory) => Ok(total - memory),
    }
}

/// cgroup v1 shares (2 to 262144, 1024 unless set) as a v2 weight (1 to 10000, 100 unless set): the curve through these
/// three points that runc, crun and the kubelet use (KEP-2254 as amended in 2025); the straight line that they used
/// before gave a container of one CPU a weight of 39.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn files(limits: &Limits) -> Vec<(&'static str, String)> {
        writes("/pod", limits).unwrap()
    }

    #[test]
    fn shares_become_weight() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (100, 17),
            (1024, 100),
            (2048, 174),
            (10_240, 639),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
        let all: Vec<u64> = (0..262_200).map(weight).collect();
        assert!(all.is_sorted(), "more shares are never less weight");
    }

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_bytes: Some(1000),
            memory_swap_bytes: Some(1500),
            memory_oom_group: Some(true),
            pids: Some(7),
            cpuset_cpus: Some("0-1".into()),
            ..Limits::default()
        };
        let expected = [
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("memory.oom.group", "1"),
            ("pids.max", "7"),
            ("cpuset.cpus", "0-1"),
        ];
        assert_eq!(
            files(&limits),
            expected.map(|(file, value)| (file, value.to_owned()))
        );
        assert_eq!(files(&Limits::default()), []);
    }

    #[test]
    fn negative_limits_mean_none() {
        let limits = Limits {
            cpu_quota: Some(-1),
            memory_bytes: Some(-1),
            memory_swap_bytes: Some(-1),
            pids: Some(-1),
            ..Limits::default()
        };
        let expected = [
            ("cpu.max", "max"),
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("pids.max", "max"),
        ];
        assert_eq!(
            files(&limits),
            expected.map(|(file, value)| (file, value.to_owned()))
        );
    }

    #[test]
    fn swap_is_what_is_left_of_both() {
        assert_eq!(swap(Some(100), 100), Ok(0), "no swap at all");
        assert_eq!(swap(Some(100), 150), Ok(50));
        assert_eq!(swap(None, -1), Ok(-1));
        for (memory, total) in [(None, 5), (Some(-1), 5), (Some(100), 99)] {
            swap(memory, total).unwrap_err();
        }
    }

    /// A directory that looks like a v2 cgroup: the rules of `set` that need no kernel.
    struct FakeTree(
        V2,
        #[allow(dead_code, reason = "it goes with the directory")] tempfile::TempDir,
    );

    impl FakeTree {
        fn new(files: &[(&str, &str)]) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().to_owned();
            std::fs::create_dir(dir.join("pod")).unwrap();
            for (file, text) in files {
                std::fs::write(dir.join("pod").join(file), text).unwrap();
            }
            let wanted = vec!["memory", "hugetlb"];
            let page_sizes = vec!["2MB".to_owned()];
            let tree = V2 {
                mount: dir,
                wanted,
                page_sizes,
                programs: bpf::Programs::default(),
                nsdelegate: false,
            };
            Self(tree, temp)
        }

        /// Whether `file` starts with `value`. The rest of an older, longer text does not count: a look-alike
        /// is not replaced by a write, as a cgroup file is.
        fn holds(&self, file: &str, value: &str) -> bool {
            let text = std::fs::read_to_string(self.0.dir("/pod").join(file)).unwrap();
            text.starts_with(value)
        }
    }

    #[test]
    fn a_new_period_keeps_the_quota() {
        let tree = FakeTree::new(&[("cpu.max", "20000 100000\n")]);
        let period = |period| Limits {
            cpu_period: Some(period),
            ..Limits::default()
        };
        tree.0.set("/pod", &period(50_000), false).unwrap();
        assert!(tree.holds("cpu.max", "20000 50000"));
        std::fs::write(tree.0.dir("/pod").join("cpu.max"), "max 100000\n").unwrap();
        tree.0.set("/pod", &period(40_000), false).unwrap();
        assert!(tree.holds("cpu.max", "max 40000"));
    }

    #[test]
    fn swap_alone_is_about_the_memory_limit_there_is() {
        let files = [
            ("memory.max", "1000\n"),
            ("memory.swap.max", "max\n"),
            ("memory.current", "0\n"),
        ];
        let tree = FakeTree::new(&files);
        let total = Limits {
            memory_swap_bytes: Some(1700),
            ..Limits::default()
        };
        tree.0.set("/pod", &total, false).unwrap();
        assert!(tree.holds("memory.swap.max", "700"));
        std::fs::remove_file(tree.0.dir("/pod").join("memory.swap.max")).unwrap();
        tree.0.set("/pod", &total, false).unwrap();
        assert!(
            !tree.0.dir("/pod").join("memory.swap.max").exists(),
            "left out without accounting"
        );
    }

    #[test]
    fn memory_below_usage_is_refused_before_anything_is_written() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.current", "5000\n"),
            ("cpu.weight", "100\n"),
        ];
        let tree = FakeTree::new(&files);
        let limits = Limits {
            memory_bytes: Some(4000),
            cpu_shares: Some(2),
            ..Limits::default()
        };
        let error = tree.0.set("/pod", &limits, false).unwrap_err();
        assert!(
            matches!(
                error,
                Error::BelowUsage {
                    limit: 4000,
                    usage: 5000,
                    ..
                }
            ),
            "{error}"
        );
        assert!(tree.holds("memory.max", "max") && tree.holds("cpu.weight", "100"));
        let limits = Limits {
            memory_bytes: Some(5000),
            ..limits
        };
        tree.0.set("/pod", &limits, false).unwrap();
        assert!(tree.holds("memory.max", "5000"));
    }

    #[test]
    fn a_refused_write_takes_the_earlier_ones_back() {
        let files = [
            ("cpu.weight", "100\n"),
            ("memory.max", "max\n"),
            ("memory.current", "0\n"),
        ];
        let tree = FakeTree::new(&files);
        // Writing to a directory is refused by any kernel.
        std::fs::create_dir(tree.0.dir("/pod").join("pids.max")).unwrap();
        let limits = Limits {
            cpu_shares: Some(2),
            memory_bytes: Some(1 << 20),
            pids: Some(5),
            ..Limits::default()
        };
        let error = tree.0.set("/pod", &limits, false).unwrap_err();
        assert!(error.to_string().contains("pids.max"), "{error}");
        assert!(tree.holds("memory.max", "max"));
        assert!(tree.holds("cpu.weight", "100"));
    }

    #[test]
    fn unified_keys_are_files_of_controllers() {
        let tree = FakeTree::new(&[("memory.high", "max\n")]);
        let key = |key: &str| Limits {
            unified: [(key.to_owned(), "1".to_owned())].into(),
            ..Limits::default()
        };
        for bad in ["cgroup.procs", "../memory.high", "memory", "memory.absent"] {
            let error = tree.0.set("/pod", &key(bad), false).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{bad}: {error}");
        }
        tree.0.set("/pod", &key("memory.high"), false).unwrap();
        assert!(tree.holds("memory.high", "1"));
    }

    #[test]
    fn lives_in_a_real_unified_tree() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = super::super::detect::parse(&text).unified.unwrap();
        let tree = V2::open(mount, super::super::page_sizes()).unwrap();
        let parent = format!("/coracle-test-v2-{}", std::process::id());
        let path = format!("{parent}/pod/container");
        let refused = Limits {
            unified: [("cgroup.procs".into(), "0".into())].into(),
            ..Limits::default()
        };
        assert!(matches!(
            tree.create(&path, &refused),
            Err(Error::Unsupported { .. })
        ));
        assert!(
            !tree.dir(&path).exists(),
            "a refused cgroup is not left behind"
        );
        tree.create(&path, &Limits::default()).unwrap();
        tree.create(&path, &Limits::default()).unwrap();
        assert!(tree.dir(&path).join("cgroup.kill").exists());
        files::remove_tree(&tree.dir(&parent), std::time::Instant::now()).unwrap_err();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        files::remove_tree(&tree.dir(&parent), deadline).unwrap();
        assert!(!tree.dir(&parent).exists());
    }
}
