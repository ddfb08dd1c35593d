//! cgroup v1: one directory per hierarchy, the same path in each, plus the unified tree of a hybrid node.
//! Called by this crate only. Invariant: a created cgroup is in every hierarchy that a
//! container needs; its cpuset may be that of a parent ([`cpuset`]).
//! Source: Documentation/admin-guide/cgroup-v1 of Linux.

mod cpuset;
mod nested;

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::change::Change;
use super::detect::Hierarchy;
use super::devices::{self, DeviceRule, Policy};
use super::error::Error;
use super::files::{self, join};
use super::inner;
use super::limits::{Limits, hugepage_writes};
use super::v2::V2;
use super::walk;

/// Controllers without which no container is run.
pub(super) const REQUIRED: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// The hierarchies of a v1 or hybrid node.
#[derive(Debug)]
pub(super) struct V1 {
    pub(super) hierarchies: Vec<Hierarchy>,
    /// The unified tree of a hybrid node.
    pub(super) unified: Option<V2>,
    /// Sizes of huge pages, as cgroup files name them.
    pub(super) page_sizes: Vec<String>,
}

impl V1 {
    /// Required controllers that are not mounted.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        REQUIRED
            .into_iter()
            .filter(|controller| self.mount(controller).is_none())
            .collect()
    }

    fn mount(&self, controller: &str) -> Option<&Path> {
        let has =
            |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        self.hierarchies
            .iter()
            .find(has)
            .map(|hierarchy| hierarchy.mount.as_path())
    }

    /// The directory of `path` under a required or optional controller.
    pub(super) fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        self.mount(controller).map(|mount| join(mount, path))
    }

    /// Like [`V1::dir`], if the controller shares its hierarchy with no other.
    pub(super) fn sole_dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mut hierarchies = self.hierarchies.iter();
        let sole = hierarchies.find(|hierarchy| hierarchy.controllers == [controller])?;
        Some(join(&sole.mount, path))
    }

    fn required_dir(&self, controller: &'static str, path: &str) -> Result<PathBuf, Error> {
        self.dir(controller, path)
            .ok_or_else(|| Error::MissingController {
                path: path.to_owned(),
                controller,
                dir: "/proc/self/mountinfo".into(),
            })
    }

    /// The directories of `path` in all hierarchies, whether they exist or not.
    pub(super) fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.mounts().map(|(mount, _)| join(mount, path)).collect()
    }

    /// Like [`V1::dirs`], without the unified tree and without optional hierarchies in which this cgroup
    /// was not created; where it has no cpuset of its own, the one that it is in.
    pub(super) fn joinable_dirs(&self, path: &str) -> Vec<PathBuf> {
        let joinable = |hierarchy: &Hierarchy| {
            let mut dir = join(&hierarchy.mount, path);
            if inner::outer(path).is_some() && !dir.is_dir() {
                // Here the processes of the inner cgroup are in the outer.
                dir.pop();
            }
            if hierarchy.controllers == ["cpuset"] {
                return Some(cpuset::nearest(&hierarchy.mount, dir));
            }
            (is_required(hierarchy) || dir.is_dir()).then_some(dir)
        };
        self.hierarchies.iter().filter_map(joinable).collect()
    }

    /// Every mount point, and whether a container must be in that hierarchy.
    fn mounts(&self) -> impl Iterator<Item = (&Path, bool)> {
        let unified = self.unified.as_ref().map(|v2| (v2.mount.as_path(), false));
        self.v1_mounts().chain(unified)
    }

    fn v1_mounts(&self) -> impl Iterator<Item = (&Path, bool)> {
        let mounts = self.hierarchies.iter();
        mounts.map(|hierarchy| (hierarchy.mount.as_path(), is_required(hierarchy)))
    }

    /// The mount points below which a container with `limits` gets a cgroup; all of them if it `is_seen` from inside.
    fn mounts_for(&self, limits: &Limits, is_seen: bool) -> impl Iterator<Item = (&Path, bool)> {
        let mut spared = self.hierarchies.iter();
        let spared = spared.find(|own| !is_seen && cpuset::is_spared(&own.controllers, limits));
        let spared = spared.map(|own| own.mount.as_path());
        self.mounts()
            .filter(move |(mount, _)| Some(*mount) != spared)
    }

    /// Creates `path` in all hierarchies and sets `limits`; on failure removes what it created. A cgroup that `is_seen`
    /// from inside has a cpuset of its own in any case.
    pub(super) fn create(&self, path: &str, limits: &Limits, is_seen: bool) -> Result<(), Error> {
        if let Some(controller) = self.missing().into_iter().next() {
            self.required_dir(controller, path)?;
        }
        let mounts: Vec<_> = self.mounts_for(limits, is_seen).collect();
        let mut made = Vec::new();
        if is_seen {
            self.inherit_cpuset(path);
        }
        let done = make(&mounts, path, &mut made)
            .and_then(|()| self.fill_cpuset(path))
            .and_then(|()| {
                let is_new = made.len() == mounts.len();
                self.offer_hugepages(path, limits);
                self.set(path, limits, is_new)
            });
        if done.is_err() {
            for dir in made {
                // Best effort: the first error is the one to report.
                let _ = std::fs::remove_dir(dir);
            }
        }
        done
    }

    /// The unified tree of a hybrid node may be where huge pages are accounted.
    fn offer_hugepages(&self, path: &str, limits: &Limits) {
        if let (None, false, Some(unified)) = (
            self.mount("hugetlb"),
            limits.hugepages.is_empty(),
            &self.unified,
        ) {
            // Without the controller, huge pages are not accounted and the limit is ignored.
            let _ = unified.open_parent_of(path);
        }
    }

    /// Writes every limit that is set; rolls them back if one is refused, unless the cgroup `is_new`.
    pub(super) fn set(&self, path: &str, limits: &Limits, is_new: bool) -> Result<(), Error> {
        if let Some(key) = limits.unified.keys().next() {
            let why = "unified keys need cgroup v2, this node runs v1";
            return Err(Error::Unsupported {
                path: path.to_owned(),
                key: key.clone(),
                why,
            });
        }
        self.ensure_cpuset(path, limits)?;
        let mut change = Change::new(is_new);
        let done = self.write(path, limits, &mut change);
        change.end(done)
    }

    fn write(&self, path: &str, limits: &Limits, change: &mut Change) -> Result<(), Error> {
        self.set_cpu(path, limits, change)?;
        self.set_memory(path, limits, change)?;
        for (controller, file, value) in [
            ("pids", "pids.max", limits.pids_max().as_ref()),
            ("cpuset", "cpuset.cpus", limits.cpuset_cpus.as_ref()),
            ("cpuset", "cpuset.mems", limits.cpuset_mems.as_ref()),
        ] {
            if let Some(value) = value {
                change.put(&self.required_dir(controller, path)?.join(file), value)?;
            }
        }
        if !limits.hugepages.is_empty() {
            self.set_hugepages(path, limits, change)?;
        }
        match &limits.devices {
            Some(rules) => self.set_devices(path, rules),
            None => Ok(()),
        }
    }

    fn set_hugepages(&self, path: &str, limits: &Limits, change: &mut Change) -> Result<(), Error> {
        let hugetlb = self.dir("hugetlb", path).map(|dir| (dir, "limit_in_bytes"));
        let unified = || Some((self.unified.as_ref()?.hugetlb_dir(path)?, "max"));
        let Some((dir, suffix)) = hugetlb.or_else(unified) else {
            return Ok(());
        };
        for (file, value) in hugepage_writes(path, &dir, suffix, &limits.hugepages)? {
            change.put(&file, &value)?;
        }
        Ok(())
    }

    fn set_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<(), Error> {
        let policy = Policy::of(rules);
        match (self.dir("devices", path), &self.unified) {
            (Some(dir), _) => devices::apply_v1(&dir, &policy),
            (None, Some(unified)) => unified.programs.apply(&unified.dir(path), &policy),
            (None, None) => self.required_dir("devices", path).map(drop),
        }
    }

    fn set_cpu(&self, path: &str, limits: &Limits, change: &mut Change) -> Result<(), Error> {
        let dir = self.required_dir("cpu", path)?;
        if let Some(shares) = limits.cpu_shares {
            change.put(&dir.join("cpu.shares"), &shares.to_string())?;
        }
        let period = limits
            .cpu_period
            .map(|period| (dir.join("cpu.cfs_period_us"), period.to_string()));
        let quota = limits
            .cpu_quota
            .map(|quota| (dir.join("cpu.cfs_quota_us"), quota.max(-1).to_string()));
        // The parent bounds quota and period together: one of the two orders stays within that bound.
        change.put_either_order(period, quota)
    }

    fn set_memory(&self, path: &str, limits: &Limits, change: &mut Change) -> Result<(), Error> {
        let dir = self.required_dir("memory", path)?;
        let text = |bytes: i64| bytes.max(-1).to_string();
        let memory = limits
            .memory_bytes
            .map(|bytes| (dir.join("memory.limit_in_bytes"), text(bytes)));
        let with_swap = dir.join("memory.memsw.limit_in_bytes");
        let swap = limits
            .memory_swap_bytes
            .filter(|_| with_swap.exists())
            .map(|bytes| (with_swap, text(bytes)));
        // The memory limit may not exceed the limit of memory plus swap, not even between the two writes.
        let error = match change.put_either_order(memory, swap) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => error,
            done => return done,
        };
        match (
            limits.memory_bytes,
            files::read_number(&dir.join("memory.usage_in_bytes")),
        ) {
            (Some(limit), Ok(Some(usage))) => Err(Error::BelowUsage {
                path: path.to_owned(),
                limit: limit.unsigned_abs(),
                usage,
            }),
            _ => Err(error),
        }
    }

    /// How many processes the OOM killer took. A v1 cgroup counts its own only, so those below it
    /// are added.
    pub(super) fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        oom_kills_below(&self.required_dir("memory", path)?)
    }
}

/// Makes `path` below each of `mounts`; adds to `made` what is new.
fn make(mounts: &[(&Path, bool)], path: &str, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    for (mount, is_required) in mounts {
        match files::make_dirs(mount, path) {
            Ok(true) => made.push(join(mount, path)),
            Ok(false) => {}
            Err(error) if !is_required && is_absent_or_read_only(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a container must be in this hierarchy.
fn is_required(hierarchy: &Hierarchy) -> bool {
    let mut names = hierarchy.controllers.iter();
    names.any(|name| REQUIRED.contains(&name.as_str()))
}

fn oom_kills_below(dir: &Path) -> Result<u64, Error> {
    let key = "oom_kill";
    let mut kills = files::read_keyed(&dir.join("memory.oom_control"), key)?;
    let mut is_top = true;
    walk::each(dir, |cgroup| {
        if !std::mem::take(&mut is_top) {
            // The workload removed it meanwhile: it counts as 0.
            let text = cgroup.read("memory.oom_control").unwrap_or_default();
            kills += files::keyed(&text, key).unwrap_or_default();
        }
        Ok(())
    })?;
    Ok(kills)
}

fn is_absent_or_read_only(error: &Error) -> bool {
    let errno = error.raw_os_error();
    errno == Some(Errno::NOENT.raw_os_error()) || errno == Some(Errno::ROFS.raw_os_error())
}
