//! A cgroup below a container's, for one exec, so that exactly the processes of the exec can be killed.
//! Created by [`Cgroup::exec_leaf`]; called by the daemon and the keeper around an exec.
//! Invariants: a leaf has no limits of its own, so that the container's apply to the exec, too; on v2 no
//! controller is enabled for it; killing or removing the container's cgroup includes its leaves.
//! Not here: starting processes, deadlines.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

use super::error::Error;
use super::files;
use super::kill::{KillList, STEP, Target};
use super::v1::V1;
use super::{Cgroup, LEAF_PREFIX, Layout, REMOVE_TIMEOUT};

/// The cgroup of one exec. Dropping it leaves the cgroup alone.
#[derive(Clone, Debug)]
pub struct ExecLeaf {
    container: Cgroup,
    /// The last component of its path.
    name: String,
    path: String,
    /// v1 hierarchies in which it is a cgroup of its own, by the container's directory there.
    split: Vec<PathBuf>,
    /// Its directory in the v2 tree.
    unified: Option<PathBuf>,
}

impl ExecLeaf {
    /// See [`Cgroup::exec_leaf`].
    pub(super) fn create(container: &Cgroup, name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let name = format!("{LEAF_PREFIX}{name}");
        let mut leaf = Self {
            container: container.clone(),
            path: format!("{}/{name}", container.path()),
            name,
            split: Vec::new(),
            unified: None,
        };
        let made = leaf.make();
        if made.is_err() {
            // Best effort: the first error is the one to report.
            let _ = leaf.remove();
        }
        made.map(|()| leaf)
    }

    fn make(&mut self) -> Result<(), Error> {
        let is_v1 = matches!(self.container.layout(), Layout::V1(_));
        if let Some(dir) = self
            .container
            .unified_dir()
            .filter(|dir| !is_v1 || dir.is_dir())
        {
            self.unified = make_domain(dir.join(&self.name))?;
        }
        if let Layout::V1(v1) = self.container.layout() {
            for dir in split_dirs(v1, self.container.path(), self.unified.is_some()) {
                files::make_dir(&dir.join(&self.name))?;
                self.split.push(dir);
            }
        }
        Ok(())
    }

    /// The path inside the hierarchies.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is a cgroup of its own. False where the workload manages its cgroup such that no
    /// child can be created (threaded, or `cgroup.max.descendants` reached): then the exec joins the
    /// container's cgroup, [`ExecLeaf::kill`] kills nothing, and processes are killed by pidfd.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.unified.is_some() || !self.split.is_empty()
    }

    /// The cgroup in the v2 tree, for `clone3(CLONE_INTO_CGROUP)`; `None` on a pure v1 node.
    /// Errors: it does not exist.
    pub fn clone_into_fd(&self) -> Result<Option<OwnedFd>, Error> {
        match &self.unified {
            Some(dir) => super::open_dir(dir).map(Some),
            None => self.container.clone_into_fd(),
        }
    }

    /// The v1 files to which a single-threaded process writes `0` to move itself, as
    /// [`Cgroup::task_files`]: the leaf's where it has its own, the container's elsewhere.
    #[must_use]
    pub fn task_files(&self) -> Vec<PathBuf> {
        let own = |dir: PathBuf| match self.split.contains(&dir) {
            true => dir.join(&self.name),
            false => dir,
        };
        let dirs = self.container.v1_dirs().into_iter();
        dirs.map(|dir| own(dir).join("tasks")).collect()
    }

    /// Files to which `1` is written to kill every process of the exec and no other: the last resort of a keeper whose
    /// daemon is gone. None where the kernel cannot kill a cgroup as a whole (a pure v1 node, before Linux 5.14: see
    /// [`ExecLeaf::kill_list`]) or the exec has no cgroup of its own.
    #[must_use]
    pub fn kill_files(&self) -> Vec<PathBuf> {
        let file = self.unified.iter().map(|dir| dir.join("cgroup.kill"));
        file.filter(|file| file.exists()).collect()
    }

    /// How a keeper kills every process of the exec where [`ExecLeaf::kill_files`] has no file: `None` where it has
    /// one, or where the exec has no cgroup of its own.
    #[must_use]
    pub fn kill_list(&self) -> Option<KillList> {
        let target = self.target();
        let needed = self.is_own() && self.kill_files().is_empty();
        needed.then_some(KillList {
            listings: target.listings,
            freezer: target.freezer,
        })
    }

    /// The processes of the exec, ascending.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        self.target().pids()
    }

    /// Removes the leaf and the cgroups that the workload created below it, if they exist.
    /// Errors: processes are left.
    pub fn remove(&self) -> Result<(), Error> {
        files::remove_trees(&self.dirs(), Instant::now() + REMOVE_TIMEOUT)
    }

    /// As [`ExecLeaf::remove`], but it works for some 40 ms at most and does not wait: see [`Cgroup::remove_some`].
    pub fn remove_some(&self) -> Result<(), Error> {
        files::remove_some(&self.dirs(), Instant::now() + STEP)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let split = self.split.iter().map(|dir| dir.join(&self.name));
        split.chain(self.unified.clone()).collect()
    }

    pub(super) fn target(&self) -> Target {
        let freezer = match self.container.layout() {
            Layout::V1(v1) => v1.dir("freezer", self.container.path()),
            Layout::V2(_) => None,
        };
        Target {
            path: self.path.clone(),
            listings: self.dirs(),
            unified: self.unified.clone(),
            freezer: freezer
                .filter(|dir| self.split.contains(dir))
                .map(|dir| dir.join(&self.name)),
        }
    }
}

/// The container's directories in those v1 hierarchies in which an exec gets a cgroup of its own:
/// one that lists its processes and, where the kernel cannot kill a cgroup at once, the freezer.
/// Never one whose limits or whose empty cpuset would come into play.
fn split_dirs(v1: &V1, path: &str, has_unified: bool) -> Vec<PathBuf> {
    let sole = |name: &&str| v1.sole_dir(name, path);
    let made = |name: &&str| sole(name).filter(|dir| dir.is_dir());
    // The pids hierarchy is never missing; if the container's cgroup is, creating its leaf there fails.
    let listing = sole(&"pids").or_else(|| ["freezer", "name=systemd"].iter().find_map(made));
    let freezer = made(&"freezer").filter(|_| !has_unified);
    let mut dirs: Vec<PathBuf> = listing.into_iter().chain(freezer).collect();
    dirs.dedup();
    dirs
}

/// Creates a v2 cgroup that processes can join; `None` if the parent does not allow it.
fn make_domain(dir: PathBuf) -> Result<Option<PathBuf>, Error> {
    match files::make_dir(&dir) {
        Ok(_) => {}
        // `cgroup.max.descendants` or `cgroup.max.depth`.
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    }
    if is_domain(&dir)? {
        return Ok(Some(dir));
    }
    std::fs::remove_dir(&dir).map_err(|source| Error::io("remove", &dir, source))?;
    Ok(None)
}

fn is_domain(dir: &Path) -> Result<bool, Error> {
    Ok(files::read(&dir.join("cgroup.type"))?.trim() == "domain")
}

fn check_name(name: &str) -> Result<(), Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !name.is_empty() && name.len() <= 128 && name.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(Error::BadPath {
            path: name.to_owned(),
            why: "is not a name of 1 to 128 letters, digits, - and _",
        }),
    }
}
