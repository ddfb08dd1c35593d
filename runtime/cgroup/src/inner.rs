//! What the processes of a container can do to their own cgroup, and the inner cgroup of those that could write it.
//!
//! Called by: the daemon, when it creates a container or changes its limits. Whoever may make a user namespace (any root
//! without a seccomp filter) can mount the cgroup tree anew in a cgroup namespace of that, writable and rooted at the cgroup
//! that it is in. On v1, and on v2 without the mount option `nsdelegate`, the kernel lets it write the limits there. So:
//!
//! ```text
//! PARENT/ID            limits, devices, stats, kill, OOM count: nothing below can name it
//! `- payload           its processes; the same limits again, for programs that read them in /sys/fs/cgroup
//!      `- exec-X       an exec, see `leaf`
//! ```
//! Invariants: what bounds the container is written to `PARENT/ID` and succeeds or fails there; the inner copy is for
//! reading, so that what a workload made of it never stops a change. Nothing is in `PARENT/ID` itself.
//! Not here: which containers need it.

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files;
use super::limits::Limits;
use super::{Cgroup, Cgroups, Layout};

/// The name of the inner cgroup.
pub(super) const NAME: &str = "payload";
/// How many cgroups a workload may have below its own, and how deep (v2 only): each takes one of the node's 65,535 ids of
/// memory cgroups.
const MAX_NESTED: [(&str, &str); 2] = [
    ("cgroup.max.descendants", "1000"),
    ("cgroup.max.depth", "32"),
];

/// What the processes in a cgroup can do to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exposure {
    /// They do not see it: keepers, WebAssembly, and containers of builds before the others were known.
    #[default]
    Hidden,
    /// They see it and may do what they like with it.
    Privileged,
    /// They see it; they or the kernel keep them from writing it.
    Guarded,
    /// They could write it, so they are in an inner cgroup.
    Inner,
}

/// The path of the inner cgroup of `path`.
pub(super) fn of(path: &str) -> String {
    format!("{path}/{NAME}")
}

/// The path of which `path` is the inner cgroup, if it is one.
pub(super) fn outer(path: &str) -> Option<&str> {
    path.strip_suffix(NAME)?.strip_suffix('/')
}

impl Cgroups {
    /// Whether the kernel keeps every cgroup namespace from writing the limits at its root: v2 mounted with `nsdelegate`.
    #[must_use]
    pub fn guards_limits(&self) -> bool {
        matches!(&*self.layout, Layout::V2(v2) if v2.nsdelegate)
    }

    /// Creates the cgroup of a container as [`Cgroups::create`] does, with what `exposure` wants: one that is seen is in
    /// every hierarchy, so that it shows no other; the number of those below it is bounded; an inner one is made.
    ///
    /// Errors: as of [`Cgroups::create`].
    pub fn create_container(
        &self,
        path: &str,
        limits: &Limits,
        exposure: Exposure,
    ) -> Result<Cgroup, Error> {
        let cgroup = self.open(path)?;
        let was_there = cgroup.exists();
        if was_there && exposure == Exposure::Inner {
            // Of an attempt that was interrupted.
            cgroup.inner().remove()?;
        }
        match &*self.layout {
            Layout::V1(v1) => v1.create(path, limits, exposure != Exposure::Hidden),
            Layout::V2(v2) => v2.create(path, limits),
        }?;
        let done = cgroup.confine(limits, exposure);
        if done.is_err() && !was_there {
            // Best effort: the first error is the one to report.
            let _ = cgroup.remove();
        }
        done.map(|()| cgroup)
    }
}

impl Cgroup {
    fn confine(&self, limits: &Limits, exposure: Exposure) -> Result<(), Error> {
        if matches!(exposure, Exposure::Guarded | Exposure::Inner) {
            self.bound_nested()?;
        }
        if exposure != Exposure::Inner {
            return Ok(());
        }
        let copy = copied(limits);
        match &*self.layout {
            Layout::V1(v1) => v1.create_inner(&self.path, &copy),
            Layout::V2(v2) => v2.create(&of(&self.path), &copy),
        }
    }

    fn bound_nested(&self) -> Result<(), Error> {
        let Some(dir) = self.unified_dir().filter(|dir| dir.is_dir()) else {
            return Ok(());
        };
        let mut limits = MAX_NESTED.iter();
        limits.try_for_each(|(file, value)| files::write(&dir.join(file), value))
    }

    /// The cgroup in which the processes are, where it was created with [`Exposure::Inner`].
    #[must_use]
    pub fn inner(&self) -> Self {
        Self {
            layout: std::sync::Arc::clone(&self.layout),
            path: of(&self.path),
        }
    }

    /// As [`Cgroup::set`], of a cgroup with an inner one, which gets a copy.
    pub fn set_with_inner(&self, limits: &Limits) -> Result<(), Error> {
        let copy = copied(limits);
        // What the workload wrote to the copy may refuse a value; it reads what it made of it.
        match &*self.layout {
            Layout::V1(v1) => {
                v1.set_above(&self.path, limits)?;
                let _ = v1.set(&of(&self.path), &copy, true);
            }
            Layout::V2(v2) => {
                v2.set(&self.path, limits, false)?;
                let _ = v2.set(&of(&self.path), &copy, true);
            }
        }
        Ok(())
    }
}

/// What the inner cgroup gets: a device policy holds for all below, and cannot be read on v2.
fn copied(limits: &Limits) -> Limits {
    Limits {
        devices: None,
        ..limits.clone()
    }
}
