//! cgroup v2: one tree; controllers are switched on from the root down to the parent of the cgroup.
//! Called by `cgroup` only. Invariant: processes live in leaves only, so no controller is ever
//! switched on in the cgroup itself.
//! Source: Documentation/admin-guide/cgroup-v2.rst of Linux.

use std::path::{Path, PathBuf};

use super::Stats;
use super::error::Error;
use super::files::{self, join};
use super::limits::Limits;

/// Controllers without which no container is run.
pub(super) const REQUIRED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// Controllers that are switched on where the node has them.
const WELCOME: [&str; 2] = ["io", "hugetlb"];

/// The unified tree.
#[derive(Debug)]
pub(super) struct V2 {
    pub(super) mount: PathBuf,
    /// Controllers of the root that we want, in the order of [`REQUIRED`], then [`WELCOME`].
    wanted: Vec<&'static str>,
}

impl V2 {
    /// The tree mounted on `mount`.
    pub(super) fn open(mount: PathBuf) -> Result<Self, Error> {
        let offered = files::read(&mount.join("cgroup.controllers"))?;
        let wanted = REQUIRED
            .into_iter()
            .chain(WELCOME)
            .filter(|name| has(&offered, name))
            .collect();
        Ok(Self { mount, wanted })
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

    /// Makes `path` and sets `limits`; on failure removes the cgroup if it made it.
    pub(super) fn create(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let dir = self.dir(path);
        self.open_parent(path, dir.parent().unwrap_or(&self.mount))?;
        let is_new = files::make_dir(&dir)?;
        let group_oom = dir.join("memory.oom.group");
        let done = if self.wanted.contains(&"memory") {
            files::write(&group_oom, "1")
        } else {
            Ok(())
        }
        .and_then(|()| self.set(path, limits));
        if done.is_err() && is_new {
            // Best effort: the error that brought us here is the one to report.
            let _ = std::fs::remove_dir(&dir);
        }
        done
    }

    /// Makes sure that `parent` exists and hands all wanted controllers to its children.
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
                place: parent.to_owned(),
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

    /// Writes every limit that is set.
    pub(super) fn set(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let dir = self.dir(path);
        if let Some(limit) = limits
            .memory_bytes
            .and_then(|bytes| u64::try_from(bytes).ok())
        {
            let usage = files::read_number(&dir.join("memory.current"))?.unwrap_or_default();
            if usage > limit {
                return Err(Error::BelowUsage {
                    path: path.to_owned(),
                    limit,
                    usage,
                });
            }
        }
        for (file, value) in writes(limits) {
            files::write(&dir.join(file), &value)?;
        }
        for (key, value) in &limits.unified {
            if key.contains('/') || !key.contains('.') || key.starts_with("cgroup.") {
                let why = "it is not a file of a controller";
                return Err(Error::Unsupported {
                    path: path.to_owned(),
                    key: key.clone(),
                    why,
                });
            }
            files::write(&dir.join(key), value)?;
        }
        Ok(())
    }

    /// How often the kernel's OOM killer struck in this cgroup or below.
    pub(super) fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        files::read_keyed(&self.dir(path).join("memory.events"), "oom_kill")
    }

    /// What the cgroup uses now.
    pub(super) fn stats(&self, path: &str) -> Result<Stats, Error> {
        let dir = self.dir(path);
        let number =
            |file: &str| files::read_number(&dir.join(file)).map(Option::unwrap_or_default);
        Ok(Stats {
            cpu_usage_ns: files::read_keyed(&dir.join("cpu.stat"), "usage_usec")?
                .saturating_mul(1000),
            memory_usage_bytes: number("memory.current")?,
            inactive_file_bytes: files::read_keyed(&dir.join("memory.stat"), "inactive_file")?,
            pids: number("pids.current")?,
        })
    }
}

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|item| item == name)
}

/// The files that `limits` asks for and what to write there, in order.
fn writes(limits: &Limits) -> Vec<(&'static str, String)> {
    let or_max =
        |bytes: i64| u64::try_from(bytes).map_or("max".to_owned(), |bytes| bytes.to_string());
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        files.push(("cpu.weight", weight(shares).to_string()));
    }
    match (limits.cpu_quota.map(or_max), limits.cpu_period) {
        (Some(quota), Some(period)) => files.push(("cpu.max", format!("{quota} {period}"))),
        (Some(quota), None) => files.push(("cpu.max", quota)),
        (None, Some(period)) => files.push(("cpu.max", format!("max {period}"))),
        (None, None) => {}
    }
    if let Some(memory) = limits.memory_bytes {
        files.push(("memory.max", or_max(memory)));
    }
    if let Some(total) = limits.memory_swap_bytes {
        // v1 counts memory and swap together, v2 swap alone.
        let memory = limits.memory_bytes.unwrap_or_default().max(0);
        files.push((
            "memory.swap.max",
            if total < 0 {
                "max".to_owned()
            } else {
                (total - memory).max(0).to_string()
            },
        ));
    }
    files.extend(limits.pids_max().map(|max| ("pids.max", max)));
    files.extend(limits.cpuset_cpus.clone().map(|cpus| ("cpuset.cpus", cpus)));
    files.extend(limits.cpuset_mems.clone().map(|mems| ("cpuset.mems", mems)));
    files
}

/// cgroup v1 shares (2..=262144) as a v2 weight (1..=10000), by Kubernetes' formula (KEP-2254).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weight() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (1024, 39),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_bytes: Some(1000),
            memory_swap_bytes: Some(1500),
            pids: Some(7),
            cpuset_cpus: Some("0-1".into()),
            ..Limits::default()
        };
        let expected = [
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("pids.max", "7"),
            ("cpuset.cpus", "0-1"),
        ];
        assert_eq!(
            writes(&limits),
            expected.map(|(file, value)| (file, value.to_owned()))
        );
        assert_eq!(writes(&Limits::default()), []);
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
            writes(&limits),
            expected.map(|(file, value)| (file, value.to_owned()))
        );
    }

    #[test]
    fn lives_in_a_real_unified_tree() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let tree = V2::open(super::super::detect::parse(&text).unified.unwrap()).unwrap();
        let parent = format!("/coracle-test-v2-{}", std::process::id());
        let path = format!("{parent}/pod/container");
        let cpu = Limits {
            unified: [("cgroup.procs".into(), "0".into())].into(),
            ..Limits::default()
        };
        assert!(matches!(
            tree.create(&path, &cpu),
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
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1);
        files::remove_tree(&tree.dir(&parent), deadline).unwrap();
        assert!(!tree.dir(&parent).exists());
    }
}
