//! The cpuset of a v1 container. One that shows its cgroups has it for itself, because it would show those of others. A
//! WebAssembly container and a keeper show none: they have it only for processors or memory nodes of their own.
//!
//! Called by [`super::V1`]. Every cpuset that is filled and every one that is removed has the kernel rebuild its scheduling
//! domains over all of them, so that a node full of cpusets starts each pod more slowly than the one before; so those of
//! containers begin as copies, which needs no filling. Without one of its own a container is in that of the nearest parent
//! that has one, as the kubelet makes it for a pod.
//! Invariant: a cpuset that processes are to join is never empty, which the kernel refuses.
//! Source: Documentation/admin-guide/cgroup-v1/cpusets.rst of Linux.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::V1;
use crate::error::Error;
use crate::files;
use crate::limits::Limits;

const NAME: &str = "cpuset";
/// How often processes that were forked meanwhile are looked for.
const ROUNDS: usize = 100;

/// Whether `controllers` are those of a hierarchy that a container is in only if `limits` have processors or memory nodes.
pub(super) fn is_spared(controllers: &[String], limits: &Limits) -> bool {
    controllers == [NAME] && !is_wanted(limits)
}

fn is_wanted(limits: &Limits) -> bool {
    limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some()
}

/// `dir`, or its nearest parent that exists, up to `mount`.
pub(super) fn nearest(mount: &Path, dir: PathBuf) -> PathBuf {
    let mut own = dir;
    while own != mount && !own.is_dir() && own.pop() {}
    own
}

/// Has new children of the cpuset `dir` begin with its processors and memory nodes. Where that fails, or `dir` does not
/// exist yet, they begin empty and are filled.
pub(super) fn copy_to_children(dir: &Path) {
    let flag = dir.join("cgroup.clone_children");
    if files::read(&flag).is_ok_and(|on| on.trim() == "0") {
        let _ = files::write(&flag, "1");
    }
}

impl V1 {
    /// Copies processors and memory nodes to the cpuset of `path`, or of its nearest parent that has one, from the nearest
    /// that are not empty.
    pub(super) fn fill_cpuset(&self, path: &str) -> Result<(), Error> {
        // `required_dir` finds the mount, so the fallback is never used.
        let mount = self.mount(NAME).unwrap_or(Path::new("/"));
        let dir = nearest(mount, self.required_dir(NAME, path)?);
        filled(mount, &dir, "cpuset.cpus")?;
        filled(mount, &dir, "cpuset.mems")?;
        Ok(())
    }

    /// Gives the container at `path` a cpuset of its own if `limits` want one and it has none, and has all its processes in
    /// it: one that was about to join another when the cpuset was made is moved by the next call.
    pub(super) fn ensure_cpuset(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        if !is_wanted(limits) {
            return Ok(());
        }
        let dir = self.required_dir(NAME, path)?;
        if !dir.is_dir() {
            let mount = self.mount(NAME).unwrap_or(Path::new("/"));
            files::make_dirs(mount, path)?;
            self.fill_cpuset(path)?;
        }
        self.gather(path, &dir)
    }

    /// Moves every process of the container at `path` to its cpuset `dir`, also those that are forked meanwhile.
    fn gather(&self, path: &str, dir: &Path) -> Result<(), Error> {
        let procs = dir.join("cgroup.procs");
        for _ in 0..ROUNDS {
            let (mut all, mut here) = (Vec::new(), Vec::new());
            files::collect_pids(&self.required_dir("pids", path)?, &mut all)?;
            files::collect_pids(dir, &mut here)?;
            all.retain(|pid| !here.contains(pid));
            if all.is_empty() {
                return Ok(());
            }
            for pid in all {
                match files::write(&procs, &pid.to_string()) {
                    // It has ended.
                    Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                    done => done?,
                }
            }
        }
        Err(Error::io(
            "move the processes of a container, which forks all the time, to",
            &procs,
            Errno::BUSY.into(),
        ))
    }
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
