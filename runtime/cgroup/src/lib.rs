//! Creates, limits, reads, kills and removes one cgroup, on cgroup v1 and v2 behind one interface.
//! Called by: the daemon (create, set, kill, stats, remove), and processes that join a cgroup by writing `0` to
//! each of [`Cgroup::procs_files`].
//! Calls: the cgroup file systems and bpf(2), nothing else. It executes no process and keeps only loaded device
//! programs in memory.
//! Invariants: a path is checked once, when a [`Cgroup`] is made, and never leaves its hierarchy;
//! creating, killing and removing may be repeated; a failed create leaves no new cgroup behind
//! (parents excepted); a failed set leaves the limits as they were.
//! Not here: who owns a path, CRI's stats messages.

mod bpf;
mod change;
mod detect;
mod devices;
mod error;
mod files;
mod inner;
mod kill;
mod leaf;
mod limits;
mod stats;
pub mod systemd;
mod thaw;
mod usage;
mod v1;
mod v2;
mod walk;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use devices::{DeviceClass, DeviceRule};
pub use error::Error;
pub use inner::Exposure;
use kill::Target;
pub use kill::{KillList, Killing};
pub use leaf::ExecLeaf;
pub use limits::Limits;
pub use stats::{
    Activity, DeviceIo, HugepageStats, IoStats, Pressure, Stall, Stats, SwapStats, Throttling,
};
use v1::V1;
use v2::V2;

use coracle_spec::CgroupMount;

/// How long [`Cgroup::remove`] tries while the kernel returns EBUSY.
pub const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How the names of the cgroups of execs begin.
const LEAF_PREFIX: &str = "exec-";

/// The cgroup version of this node's controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller, perhaps with an empty unified tree beside them (hybrid).
    V1,
    /// The unified hierarchy.
    V2,
}

/// The cgroup hierarchies of this node, detected once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Arc<Layout>,
}

/// One cgroup by its path; it need not exist. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroup {
    layout: Arc<Layout>,
    path: String,
}

#[derive(Debug)]
enum Layout {
    V1(V1),
    V2(V2),
}

impl Cgroups {
    /// Reads `/proc/self/mountinfo`. A node with any v1 controller counts as v1.
    /// Errors: no cgroup file system is mounted, or a file cannot be read.
    pub fn detect() -> Result<Self, Error> {
        let mountinfo = Path::new("/proc/self/mountinfo");
        let mounts = detect::parse(&files::read(mountinfo)?);
        let has_controller = |hierarchy: &detect::Hierarchy| {
            hierarchy
                .controllers
                .iter()
                .any(|name| !name.starts_with("name="))
        };
        let nsdelegate = mounts.nsdelegate;
        let layout = match (mounts.v1.iter().any(has_controller), mounts.unified) {
            (true, unified) => Layout::V1(V1 {
                hierarchies: mounts.v1,
                unified: unified.map(V2::beside_v1).transpose()?,
                page_sizes: page_sizes(),
            }),
            (false, Some(mount)) => Layout::V2(V2 {
                nsdelegate,
                ..V2::open(mount, page_sizes())?
            }),
            (false, None) => {
                return Err(Error::NotMounted {
                    mountinfo: mountinfo.to_owned(),
                });
            }
        };
        Ok(Self {
            layout: Arc::new(layout),
        })
    }

    /// The interface in use.
    #[must_use]
    pub fn version(&self) -> Version {
        match &*self.layout {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
        }
    }

    /// Controllers that every container needs and this node lacks.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        match &*self.layout {
            Layout::V1(v1) => v1.missing(),
            Layout::V2(v2) => v2.missing(),
        }
    }

    /// The hierarchies as a container shows them below `/sys/fs/cgroup`, the unified tree of a hybrid node last.
    #[must_use]
    pub fn mounts(&self) -> Vec<CgroupMount> {
        let named = |mount: &Path, controllers: &[String]| CgroupMount {
            directory: mount
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            controllers: controllers.to_vec(),
        };
        match &*self.layout {
            Layout::V1(v1) => {
                let v1s = v1.hierarchies.iter();
                let all = v1s.map(|hierarchy| named(&hierarchy.mount, &hierarchy.controllers));
                all.chain(v1.unified.iter().map(|tree| named(&tree.mount, &[])))
                    .collect()
            }
            Layout::V2(_) => vec![CgroupMount {
                directory: String::new(),
                controllers: Vec::new(),
            }],
        }
    }

    /// Creates the cgroup `path` (absolute inside the hierarchy, e.g. `/kubepods/podX/ID`) with its
    /// missing parents and sets `limits`. One that exists is reused.
    /// Errors: a bad path, a missing controller, a limit the kernel refuses.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Cgroup, Error> {
        let cgroup = self.open(path)?;
        match &*self.layout {
            Layout::V1(v1) => v1.create(path, limits, false),
            Layout::V2(v2) => v2.create(path, limits),
        }?;
        Ok(cgroup)
    }

    /// The cgroup `path`, whether it exists or not. Errors: a bad path.
    pub fn open(&self, path: &str) -> Result<Cgroup, Error> {
        check_path(path)?;
        Ok(Cgroup {
            layout: Arc::clone(&self.layout),
            path: path.to_owned(),
        })
    }
}

impl Cgroup {
    /// The path inside the hierarchy, as it was given.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The files to write `0` to in order to join: one on v2; on v1 one per hierarchy, `name=systemd`
    /// and the hybrid node's unified tree included. Optional hierarchies in which the cgroup was not
    /// created are left out.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let dirs = match &*self.layout {
            Layout::V1(v1) => {
                let unified = self.unified_dir().filter(|dir| dir.is_dir());
                v1.joinable_dirs(&self.path)
                    .into_iter()
                    .chain(unified)
                    .collect()
            }
            Layout::V2(v2) => vec![v2.dir(&self.path)],
        };
        dirs.into_iter()
            .map(|dir: PathBuf| dir.join("cgroup.procs"))
            .collect()
    }

    /// The v1 files to which a single-threaded process writes `0` to move itself; none on v2. They are `tasks`, not
    /// `cgroup.procs`: moving one's own thread does not wait for an RCU grace period, which moving a thread group
    /// does (some 10 ms whenever the node has been quiet).
    #[must_use]
    pub fn task_files(&self) -> Vec<PathBuf> {
        let dirs = self.v1_dirs().into_iter();
        dirs.map(|dir| dir.join("tasks")).collect()
    }

    /// The directory in the unified tree, for `clone3(CLONE_INTO_CGROUP)`; `None` on a pure v1 node.
    /// Errors: it does not exist.
    pub fn clone_into_fd(&self) -> Result<Option<OwnedFd>, Error> {
        self.unified_dir().map(|dir| open_dir(&dir)).transpose()
    }

    /// Whether the cgroup exists in at least one hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dirs().iter().any(|dir| dir.is_dir())
    }

    /// Sets the fields of `limits` that are `Some`; the rest stays. On an error all limits stay.
    /// Errors: a limit the kernel refuses; a memory limit below what is in use, which would kill.
    pub fn set(&self, limits: &Limits) -> Result<(), Error> {
        match &*self.layout {
            Layout::V1(v1) => v1.set(&self.path, limits, false),
            Layout::V2(v2) => v2.set(&self.path, limits, false),
        }
    }

    /// How many processes the OOM killer has killed in this cgroup and those below it since it was
    /// created, whichever limit was hit (its own, its pod's, the node's). To be read before
    /// [`Cgroup::remove`]. Errors: the cgroup is gone.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        match &*self.layout {
            Layout::V1(v1) => v1.oom_kills(&self.path),
            Layout::V2(v2) => v2.oom_kills(&self.path),
        }
    }

    /// The processes in this cgroup and below it, ascending; none if it is gone. On v1 those of the
    /// pids hierarchy and of the unified tree count.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        self.target().pids()
    }

    /// Creates a cgroup below this one for one exec; one that exists is reused.
    /// `name` has 1 to 128 letters, digits, `-` and `_`. Errors: a bad name; this cgroup is gone.
    pub fn exec_leaf(&self, name: &str) -> Result<ExecLeaf, Error> {
        ExecLeaf::create(self, name)
    }

    /// Removes the cgroup and those below it from every hierarchy, if they exist. EBUSY (a process has not
    /// ended yet) is retried for at most [`REMOVE_TIMEOUT`] in all.
    /// Errors: the first one, after all hierarchies were tried.
    pub fn remove(&self) -> Result<(), Error> {
        files::remove_trees(&self.dirs(), Instant::now() + REMOVE_TIMEOUT)
    }

    /// As [`Cgroup::remove`], but it works for some 40 ms at most and does not wait: [`Error::is_busy`] says that there is
    /// more to remove, or a process that has not ended. What was removed by then stays removed.
    pub fn remove_some(&self) -> Result<(), Error> {
        files::remove_some(&self.dirs(), Instant::now() + kill::STEP)
    }

    /// The usage of the cgroup, with those below it. It works for any cgroup, such as the parent that
    /// all containers of a pod share. Errors: the cgroup is gone.
    pub fn stats(&self) -> Result<Stats, Error> {
        match &*self.layout {
            Layout::V1(v1) => usage::v1(v1, &self.path),
            Layout::V2(v2) => usage::v2(v2, &self.path),
        }
    }

    /// What tells whether anything ran in the cgroup, or below it, since an earlier call: a fraction of the cost of
    /// [`Cgroup::stats`]. Errors: the cgroup is gone.
    pub fn activity(&self) -> Result<Activity, Error> {
        match &*self.layout {
            Layout::V1(v1) => usage::v1_activity(v1, &self.path),
            Layout::V2(v2) => usage::v2_activity(v2, &self.path),
        }
    }

    /// Reads the pressure of the cgroup into `stats`, where the kernel measures it: it changes while nothing runs, as
    /// tasks that wait for a disk do not. Errors: the cgroup is gone.
    pub fn read_pressure(&self, stats: &mut Stats) -> Result<(), Error> {
        self.unified_dir()
            .map_or(Ok(()), |dir| usage::pressure_of(dir, stats))
    }

    /// Huge pages in use by size, of the sizes that the node accounts; none if the cgroup is gone.
    pub fn hugepages(&self) -> Result<Vec<HugepageStats>, Error> {
        match &*self.layout {
            Layout::V1(v1) => usage::v1_hugepages(v1, &self.path),
            Layout::V2(v2) => usage::v2_hugepages(v2, &self.path),
        }
    }

    /// The traffic with each block device, where the node accounts it; none if the cgroup is gone.
    pub fn devices(&self) -> Result<Vec<DeviceIo>, Error> {
        match &*self.layout {
            Layout::V1(v1) => usage::v1_devices(v1, &self.path),
            Layout::V2(v2) => usage::v2_devices(v2, &self.path),
        }
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn dirs(&self) -> Vec<PathBuf> {
        match &*self.layout {
            Layout::V1(v1) => v1.dirs(&self.path),
            Layout::V2(v2) => vec![v2.dir(&self.path)],
        }
    }

    /// The v1 directories that a process must join; none on v2.
    fn v1_dirs(&self) -> Vec<PathBuf> {
        match &*self.layout {
            Layout::V1(v1) => v1.joinable_dirs(&self.path),
            Layout::V2(_) => Vec::new(),
        }
    }

    /// The directory in the cgroup v2 tree, if this node has one.
    fn unified_dir(&self) -> Option<PathBuf> {
        match &*self.layout {
            Layout::V1(v1) => v1.unified.as_ref().map(|v2| v2.dir(&self.path)),
            Layout::V2(v2) => Some(v2.dir(&self.path)),
        }
    }

    fn target(&self) -> Target {
        let v1_dir = |controller| match &*self.layout {
            Layout::V1(v1) => v1.dir(controller, &self.path),
            Layout::V2(_) => None,
        };
        let unified = self.unified_dir();
        Target {
            path: self.path.clone(),
            listings: v1_dir("pids").into_iter().chain(unified.clone()).collect(),
            unified,
            freezer: v1_dir("freezer"),
        }
    }
}

/// The sizes of huge pages that this kernel has; none if it has no huge pages.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let size = |entry: std::fs::DirEntry| detect::page_size(entry.file_name().to_str()?);
    let mut sizes: Vec<String> = entries.flatten().filter_map(size).collect();
    sizes.sort_unstable();
    sizes
}

/// An O_PATH descriptor of the cgroup `dir`.
fn open_dir(dir: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(dir, flags, Mode::empty()).map_err(|e| Error::io("open", dir, e.into()))
}

/// Why a path is refused: it could leave the hierarchy, or is its root.
fn check_path(path: &str) -> Result<(), Error> {
    let parts = path.strip_prefix('/');
    let why = match parts {
        None => "is not absolute",
        Some("") => "is the root of the hierarchy",
        Some(_) if path.len() > 3000 => "is longer than 3000 bytes",
        Some(_) if path.contains(['\0', '\n']) => "holds a control character",
        Some(parts) if parts.split('/').any(|part| part.is_empty()) => "has an empty component",
        Some(parts) if parts.split('/').any(|part| part == "." || part == "..") => {
            "has a . or .. component"
        }
        Some(_) => return Ok(()),
    };
    Err(Error::BadPath {
        path: path.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests;
