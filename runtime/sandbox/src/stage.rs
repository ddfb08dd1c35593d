//! The private tmpfs in which a root is assembled, in a mount namespace that has nothing else.
//!
//! Called by the builders of both kinds of roots and by [`super::volume`]. What comes from the node is opened before, as
//! detached trees ([`open`], [`open_layers`]): the new namespace is a copy of an empty one, so that making and dropping it
//! costs the same however many mounts the node has. The tmpfs is gone once the root is entered.
//! Invariants: only the building process sees it; no mount of the node is ever in its namespace but those trees.
//! It must not know what the trees are for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::process::fchdir;
use rustix::thread::UnshareFlags;

use super::identity::HostIdentity;
use super::rootfs_path::open_dir;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys::empty;
use coracle_sys::mounts::{self, Forbid};

/// A private tmpfs with a directory for each tree that must be attached somewhere to be used.
///
/// It is the working directory while it exists, because a process in a user namespace could not reach its path.
pub(super) struct Stage;

impl Stage {
    /// Leaves the node's mounts for a copy of `nothing`, an empty mount namespace, mounts the tmpfs there and enters it.
    ///
    /// Errors: the kernel refuses a namespace or a mount.
    pub(super) fn apart_from_node(nothing: BorrowedFd<'_>) -> Result<Self> {
        empty::enter(nothing).during(|| "leave the node's mounts".into())?;
        super::unshare(UnshareFlags::NEWNS, "mount")?;
        let what = || "make the stage for the root".to_owned();
        // Open to all ids: only this process sees it, and it may become the root of a user namespace.
        let options = [(c"size", Some("64k")), (c"mode", Some("0777"))];
        let tree = mounts::filesystem(c"tmpfs", &options, Forbid::default()).during(what)?;
        let target = open_dir(Path::new(empty::MOUNT_POINT)).during(what)?;
        mounts::attach(tree.as_fd(), target.as_fd()).during(what)?;
        fchdir(&tree).during(what)?;
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

    /// Attaches `tree` as directory `name`, relative to the working directory.
    pub(super) fn hold(&self, name: &str, tree: &OwnedFd) -> Result<()> {
        let what = || format!("mount {name} of the stage");
        if !Path::new(name).exists() {
            mkdirat(CWD, name, Mode::RWXU).during(what)?;
        }
        let target = self.mount_point(name)?;
        mounts::attach(tree.as_fd(), target.as_fd()).during(what)
    }

    /// Attaches `layers` (lowest first). Returns their names topmost first, as for overlay.
    pub(super) fn layers(&self, prefix: &str, layers: &[OwnedFd]) -> Result<Vec<String>> {
        let mut names = Vec::with_capacity(layers.len());
        for (number, layer) in layers.iter().enumerate() {
            let name = format!("{prefix}{number}");
            self.hold(&name, layer)?;
            names.push(name);
        }
        names.reverse();
        Ok(names)
    }
}

/// A mapped, detached copy of the node's directory `source`. Errors: its filesystem, by name, does not support id maps.
pub(super) fn open(source: &Path, forbid: Forbid, host: &HostIdentity) -> Result<OwnedFd> {
    let tree = mounts::clone_tree(source, false)
        .during(|| format!("mount {} for the root", source.display()))?;
    let map = host.map.as_ref().map(AsFd::as_fd);
    mounts::set_attributes(tree.as_fd(), forbid, map, false).map_err(|e| cannot_map(source, e))?;
    Ok(tree)
}

/// The same of each of `layers`, read-only.
pub(super) fn open_layers(layers: &[PathBuf], host: &HostIdentity) -> Result<Vec<OwnedFd>> {
    let open = |layer: &PathBuf| open(layer, Forbid::WRITES, host);
    layers.iter().map(open).collect()
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
