//! The private tmpfs in which a root is assembled.
//!
//! Called by the builders of both kinds of roots and by [`super::volume`]. It is gone once the root is entered.
//! Invariant: only the building process sees it.
//! It must not know what the trees are for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::process::chdir;

use super::identity::HostIdentity;
use super::rootfs_path::open_dir;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys::mounts::{self, Forbid};

/// A private tmpfs with a directory for each tree that must be attached somewhere to be used.
///
/// It is the working directory while it exists, because a process in a user namespace could not reach its path.
pub(super) struct Stage;

impl Stage {
    /// Mounts the tmpfs over `staging` and enters it. Errors: a mount failed.
    pub(super) fn over(staging: &Path) -> Result<Self> {
        let what = || format!("build over staging directory {}", staging.display());
        // Open to all ids: only this process sees it, and it may become the root of a user namespace.
        let options = [(c"size", Some("64k")), (c"mode", Some("0777"))];
        let tree = mounts::filesystem(c"tmpfs", &options, Forbid::default()).during(what)?;
        let target = open_dir(staging).during(what)?;
        mounts::attach(tree.as_fd(), target.as_fd()).during(what)?;
        chdir(staging).during(what)?;
        mkdirat(CWD, "root", Mode::from_raw_mode(0o755)).during(what)?;
        mkdirat(CWD, "own", Mode::from_raw_mode(0o755)).during(what)?;
        Ok(Self)
    }

    /// Makes directory `name` of the stage and opens it.
    pub(super) fn new_mount_point(&self, name: &str) -> Result<OwnedFd> {
        mkdirat(CWD, name, Mode::RWXU).during(|| format!("make {name} of the stage"))?;
        self.mount_point(name)
    }

    /// Opens directory `name` of the stage.
    pub(super) fn mount_point(&self, name: &str) -> Result<OwnedFd> {
        open_dir(Path::new(name)).during(|| format!("open {name} of the stage"))
    }

    /// Attaches a mapped copy of host directory `source` as `name`; the name is relative to the working directory.
    pub(super) fn hold(
        &self,
        name: &str,
        source: &Path,
        forbid: Forbid,
        host: &HostIdentity,
    ) -> Result<()> {
        let what = || format!("mount {} for the root", source.display());
        let tree = mounts::clone_tree(source, false).during(what)?;
        mounts::set_attributes(
            tree.as_fd(),
            forbid,
            host.map.as_ref().map(AsFd::as_fd),
            false,
        )
        .map_err(|e| cannot_map(source, e))?;
        if !Path::new(name).exists() {
            mkdirat(CWD, name, Mode::RWXU).during(what)?;
        }
        let target = self.mount_point(name)?;
        mounts::attach(tree.as_fd(), target.as_fd()).during(what)
    }
    /// Attaches id-mapped, read-only copies of `layers` (lowest first). Returns their names topmost first, as for
    /// overlay.
    pub(super) fn layers(
        &self,
        prefix: &str,
        layers: &[PathBuf],
        host: &HostIdentity,
    ) -> Result<Vec<String>> {
        let mut names = Vec::with_capacity(layers.len());
        for (number, layer) in layers.iter().enumerate() {
            let name = format!("{prefix}{number}");
            self.hold(&name, layer, Forbid::WRITES, host)?;
            names.push(name);
        }
        names.reverse();
        Ok(names)
    }
}

/// The error of a filesystem that does not support id maps, in a container that needs one.
pub(super) fn cannot_map(source: &Path, cause: std::io::Error) -> Error {
    Error::with(
        Kind::Unsupported,
        format!(
            "the filesystem of {} cannot carry the pod's id map (idmapped mounts), and the container runs as root; \
             set runAsUser to a user other than 0",
            source.display()
        ),
        cause,
    )
}
