//! cgroup v1: one directory a hierarchy, the same path in each, plus the unified tree of a hybrid node.
//! Called by `cgroup` only. Invariant: a cgroup that `create` made is in every hierarchy that a
//! container needs, and its cpuset is never empty (a process could not join it).
//! Source: Documentation/admin-guide/cgroup-v1 of Linux.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Stats;
use super::detect::Hierarchy;
use super::error::Error;
use super::files::{self, join};
use super::limits::Limits;

/// Controllers without which no container is run.
pub(super) const REQUIRED: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// The hierarchies of a v1 or hybrid node.
#[derive(Debug)]
pub(super) struct V1 {
    pub(super) hierarchies: Vec<Hierarchy>,
    pub(super) unified: Option<PathBuf>,
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

    fn required_dir(&self, controller: &'static str, path: &str) -> Result<PathBuf, Error> {
        self.dir(controller, path)
            .ok_or_else(|| Error::MissingController {
                path: path.to_owned(),
                controller,
                place: "/proc/self/mountinfo".into(),
            })
    }

    /// The directories of `path` in all hierarchies, whether they exist or not.
    pub(super) fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.mounts().map(|(mount, _)| join(mount, path)).collect()
    }

    /// Like [`V1::dirs`], without those a node may lack and this cgroup was not made in.
    pub(super) fn joinable_dirs(&self, path: &str) -> Vec<PathBuf> {
        let dirs = self
            .mounts()
            .map(|(mount, is_required)| (join(mount, path), is_required));
        dirs.filter(|(dir, is_required)| *is_required || dir.is_dir())
            .map(|(dir, _)| dir)
            .collect()
    }

    /// Every mount point, and whether a container must be in that hierarchy.
    fn mounts(&self) -> impl Iterator<Item = (&Path, bool)> {
        let is_required = |hierarchy: &Hierarchy| {
            hierarchy
                .controllers
                .iter()
                .any(|name| REQUIRED.contains(&name.as_str()))
        };
        self.hierarchies
            .iter()
            .map(move |hierarchy| (hierarchy.mount.as_path(), is_required(hierarchy)))
            .chain(self.unified.as_deref().map(|mount| (mount, false)))
    }

    /// Makes `path` everywhere and sets `limits`; on failure removes what it made.
    pub(super) fn create(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        if let Some(controller) = self.missing().into_iter().next() {
            self.required_dir(controller, path)?;
        }
        let mut made = Vec::new();
        let done = self
            .make(path, &mut made)
            .and_then(|()| self.fill_cpuset(path))
            .and_then(|()| self.set(path, limits));
        if done.is_err() {
            for dir in made {
                // Best effort: the error that brought us here is the one to report.
                let _ = std::fs::remove_dir(dir);
            }
        }
        done
    }

    fn make(&self, path: &str, made: &mut Vec<PathBuf>) -> Result<(), Error> {
        for (mount, is_required) in self.mounts() {
            match files::make_dirs(mount, path) {
                Ok(true) => made.push(join(mount, path)),
                Ok(false) => {}
                Err(error) if !is_required && is_absent_or_read_only(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A new cpuset is empty; copies the nearest ancestor's CPUs and memory nodes down.
    fn fill_cpuset(&self, path: &str) -> Result<(), Error> {
        let dir = self.required_dir("cpuset", path)?;
        // `required_dir` found the mount, so the fallback is never used.
        let mount = self.mount("cpuset").unwrap_or(Path::new("/"));
        filled(mount, &dir, "cpuset.cpus")?;
        filled(mount, &dir, "cpuset.mems")?;
        Ok(())
    }

    /// Writes every limit that is set.
    pub(super) fn set(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        if let Some(key) = limits.unified.keys().next() {
            let why = "unified keys need cgroup v2, this node runs v1";
            return Err(Error::Unsupported {
                path: path.to_owned(),
                key: key.clone(),
                why,
            });
        }
        self.set_cpu(path, limits)?;
        self.set_memory(path, limits)?;
        if let Some(max) = limits.pids_max() {
            files::write(&self.required_dir("pids", path)?.join("pids.max"), &max)?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            files::write(
                &self.required_dir("cpuset", path)?.join("cpuset.cpus"),
                cpus,
            )?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            files::write(
                &self.required_dir("cpuset", path)?.join("cpuset.mems"),
                mems,
            )?;
        }
        Ok(())
    }

    fn set_cpu(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let dir = self.required_dir("cpu", path)?;
        if let Some(shares) = limits.cpu_shares {
            files::write(&dir.join("cpu.shares"), &shares.to_string())?;
        }
        let period = limits
            .cpu_period
            .map(|period| (dir.join("cpu.cfs_period_us"), period.to_string()));
        let quota = limits
            .cpu_quota
            .map(|quota| (dir.join("cpu.cfs_quota_us"), quota.max(-1).to_string()));
        write_either_order(period, quota)
    }

    fn set_memory(&self, path: &str, limits: &Limits) -> Result<(), Error> {
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
        let error = match write_either_order(memory, swap) {
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

    /// How often the kernel's OOM killer struck in this cgroup.
    pub(super) fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        files::read_keyed(
            &self
                .required_dir("memory", path)?
                .join("memory.oom_control"),
            "oom_kill",
        )
    }

    /// What the cgroup uses now.
    pub(super) fn stats(&self, path: &str) -> Result<Stats, Error> {
        let memory = self.required_dir("memory", path)?;
        let number = |file: PathBuf| files::read_number(&file).map(Option::unwrap_or_default);
        Ok(Stats {
            cpu_usage_ns: number(self.required_dir("cpuacct", path)?.join("cpuacct.usage"))?,
            memory_usage_bytes: number(memory.join("memory.usage_in_bytes"))?,
            inactive_file_bytes: files::read_keyed(
                &memory.join("memory.stat"),
                "total_inactive_file",
            )?,
            pids: number(self.required_dir("pids", path)?.join("pids.current"))?,
        })
    }
}

fn is_absent_or_read_only(error: &Error) -> bool {
    let errno = error.raw_os_error();
    errno == Some(Errno::NOENT.raw_os_error()) || errno == Some(Errno::ROFS.raw_os_error())
}

/// The value of `file` in `dir`, taken from the nearest ancestor with one and written down the way.
fn filled(mount: &Path, dir: &Path, file: &str) -> Result<String, Error> {
    let own = files::read(&dir.join(file))?;
    let parent = match dir.parent() {
        Some(parent) if own.trim().is_empty() && dir != mount => parent,
        _ => return Ok(own),
    };
    let value = filled(mount, parent, file)?;
    files::write(&dir.join(file), value.trim_end())?;
    Ok(value)
}

/// Two files that bound each other: which goes first depends on what they hold now, so the other
/// order is tried when the kernel says EINVAL.
fn write_either_order(
    first: Option<(PathBuf, String)>,
    second: Option<(PathBuf, String)>,
) -> Result<(), Error> {
    let put = |pair: &Option<(PathBuf, String)>| match pair {
        Some((file, value)) => files::write(file, value),
        None => Ok(()),
    };
    match put(&first) {
        Err(error)
            if second.is_some() && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
        {
            put(&second)?;
            put(&first)
        }
        Err(error) => Err(error),
        Ok(()) => put(&second),
    }
}
