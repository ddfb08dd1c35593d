//! The inner cgroup of a v1 container, and changes of limits that the cgroups below bound.
//!
//! Called by [`crate::inner`]. On v1 a child may not have more processor time, processors or memory nodes than its parent
//! ("refused: EINVAL, EBUSY"), so a parent is lowered from the bottom up.
//! Invariant: the inner cgroup is in every hierarchy with limits of ours or numbers that its files could reset. In others
//! (devices, whose rules only the node's root can change; blkio, where only numbers are ours, and a parent sums up those of
//! its children, so that an inner cgroup would keep none; named ones) the processes are in the outer cgroup.
//! Source: Documentation/admin-guide/cgroup-v1/cpusets.rst, `tg_cfs_schedulable_down` of Linux.

use std::path::Path;

use rustix::io::Errno;

use super::{V1, cpuset};
use crate::change::Change;
use crate::detect::Hierarchy;
use crate::error::Error;
use crate::files::{self, join};
use crate::inner;
use crate::limits::Limits;
use crate::walk::{self, Open};

/// The controllers in whose hierarchies the inner cgroup is.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb"];
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

impl V1 {
    /// Makes the inner cgroup of `path`, which exists, with `limits`.
    pub(crate) fn create_inner(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let inner = inner::of(path);
        self.count_in_parent(path)?;
        self.inherit_cpuset(&inner);
        let own = self.hierarchies.iter().filter(|own| self.has_inner(own));
        let v1 = own.map(|own| own.mount.as_path());
        let unified = self.unified.as_ref().map(|tree| tree.mount.as_path());
        for mount in v1.chain(unified) {
            // Hierarchies in which the outer cgroup could not be made are left out.
            if join(mount, path).is_dir() {
                files::make_dir(&join(mount, &inner))?;
            }
        }
        self.fill_cpuset(&inner)?;
        self.offer_hugepages(&inner, limits);
        self.set(&inner, limits, true)
    }

    /// Without a unified tree an exec has a cgroup below the inner one in the freezer's hierarchy, too.
    fn has_inner(&self, hierarchy: &Hierarchy) -> bool {
        let freezes = |name: &str| name == "freezer" && self.unified.is_none();
        let mut names = hierarchy.controllers.iter();
        names.any(|name| CONTROLLERS.contains(&name.as_str()) || freezes(name))
    }

    /// Has the memory of `path` include that of the cgroups below it, which a kernel before 5.11 does only on request.
    fn count_in_parent(&self, path: &str) -> Result<(), Error> {
        let file = self
            .required_dir("memory", path)?
            .join("memory.use_hierarchy");
        match files::read(&file) {
            Ok(text) if text.trim() == "0" => files::write(&file, "1"),
            _ => Ok(()),
        }
    }

    /// As [`V1::set`], of a cgroup whose processes are in those below it.
    pub(crate) fn set_above(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let refused = match self.set(path, limits, false) {
            Err(error) if is_bound_below(&error) => error,
            done => return done,
        };
        let mut change = Change::new(false);
        let done = self
            .lower_those_below(path, limits, &mut change)
            .map_err(|_| refused)
            .and_then(|()| self.write(path, limits, &mut change));
        change.end(done)
    }

    /// Gives the cgroups below `path` limits that those of `path` do not contradict.
    fn lower_those_below(
        &self,
        path: &str,
        limits: &Limits,
        change: &mut Change,
    ) -> Result<(), Error> {
        let inner = inner::of(path);
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let file = "cpu.cfs_quota_us";
            change.put(&self.required_dir("cpu", &inner)?.join(file), "-1")?;
            // Without a quota of its own a cgroup is bounded by its parent's alone.
            walk::below(&self.required_dir("cpu", path)?, |cgroup| {
                set(cgroup, file, "-1")
            })?;
        }
        let dir = self.required_dir("cpuset", path)?;
        let values = [limits.cpuset_cpus.as_ref(), limits.cpuset_mems.as_ref()];
        for (file, value) in CPUSET_FILES.into_iter().zip(values) {
            let Some(value) = value else { continue };
            for dir in [&dir, &self.required_dir("cpuset", &inner)?] {
                let now = files::read(&dir.join(file))?;
                change.put(&dir.join(file), &both(&now, value))?;
            }
            narrow(&dir, file, value)?;
        }
        Ok(())
    }

    /// Has the next cpuset below the parent of `path` begin as a copy of it: filling an empty one costs the kernel more.
    pub(super) fn inherit_cpuset(&self, path: &str) {
        if let (Some(mount), Some(dir)) = (self.mount("cpuset"), self.dir("cpuset", path))
            && let Some(parent) = dir.parent().filter(|parent| *parent != mount)
        {
            cpuset::copy_to_children(parent);
        }
    }
}

/// Sets the cpusets below `dir` to `value`: each is widened before those below it and narrowed after them.
fn narrow(dir: &Path, file: &str, value: &str) -> Result<(), Error> {
    let widen = |cgroup: Open<'_>| match cgroup.read(file) {
        Ok(now) if !now.trim().is_empty() => set(cgroup, file, &both(&now, value)),
        _ => Ok(()),
    };
    let narrow = |cgroup: Open<'_>| match cgroup.read(file) {
        Ok(now) if !now.trim().is_empty() => set(cgroup, file, value),
        _ => Ok(()),
    };
    walk::around(dir, widen, narrow)
}

/// Writes to a cgroup that the workload may have removed meanwhile.
fn set(cgroup: Open<'_>, file: &str, value: &str) -> Result<(), Errno> {
    match cgroup.write(file, value) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        written => written,
    }
}

/// The list of all that two lists of processors or memory nodes have.
fn both(one: &str, other: &str) -> String {
    format!("{},{}", one.trim(), other.trim())
}

/// Whether the kernel may have refused a value because a cgroup below has more.
fn is_bound_below(error: &Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::INVAL | Errno::BUSY))
}
