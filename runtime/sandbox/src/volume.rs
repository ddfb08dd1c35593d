//! The mounts that CRI asks for, each as a detached tree that is ready to be attached.
//!
//! Called by the builders of both kinds of roots. A host path is opened once and mounted by descriptor, so that nobody
//! can swap it between a check and its use.
//! Invariants: a tree carries the pod's id map and every restriction before it can be seen; an image is read-only.
//! Not here: where a tree goes.

use std::os::fd::{AsFd, OwnedFd};

use super::identity::HostIdentity;
use super::rootfs_path;
use super::stage::{Stage, cannot_map};
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{Mount, MountKind, MountPropagation};
use coracle_sys::mounts::{self, Forbid, Propagation};

/// What `mount` shall forbid besides what the sandbox forbids everywhere.
fn forbidden(mount: &Mount, everywhere: Forbid) -> Forbid {
    Forbid {
        writes: everywhere.writes || mount.readonly,
        setid: everywhere.setid || mount.nosuid,
        devices: everywhere.devices || mount.nodev,
        exec: everywhere.exec || mount.noexec,
    }
}

/// Opens the host path of a bind mount, with everything mounted below it. To be called while the process still hears
/// of the host's mounts, or nothing can pass between them later.
///
/// Errors: the path is not there any more, or cannot be mounted.
pub fn open_bind(mount: &Mount) -> Result<OwnedFd> {
    let what = || format!("mount {} at {}", mount.source.display(), mount.target);
    let tree = mounts::clone_tree(&mount.source, true).during(what)?;
    let propagation = match mount.propagation {
        MountPropagation::Private => Propagation::Private,
        MountPropagation::Slave => Propagation::Slave,
        MountPropagation::Shared => Propagation::Shared,
    };
    mounts::set_propagation(tree.as_fd(), propagation).during(what)?;
    Ok(tree)
}

/// Restricts an opened bind mount and gives it the id map of `host`. With `all`, what is mounted below it as well.
///
/// Errors: its filesystem cannot carry the map, by name.
pub fn restrict(
    tree: &OwnedFd,
    mount: &Mount,
    host: &HostIdentity,
    everywhere: Forbid,
    all: bool,
) -> Result<()> {
    let map = host.map.as_ref().map(AsFd::as_fd);
    let forbid = forbidden(mount, everywhere);
    if map.is_some() || all {
        mounts::set_attributes(
            tree.as_fd(),
            if all { forbid } else { Forbid::default() },
            map,
            true,
        )
        .map_err(|e| cannot_map(&mount.source, e))?;
    }
    let what = || format!("restrict the mount at {}", mount.target);
    if !all {
        mounts::set_attributes(tree.as_fd(), forbid, None, false).during(what)?;
    }
    if mount.recursive_readonly {
        mounts::set_attributes(tree.as_fd(), Forbid::WRITES, None, true).during(what)?;
    }
    Ok(())
}

/// What holds for all mounts of a container.
pub struct MountOptions<'a> {
    /// Whom the files of a tmpfs belong to, and whom an image's ids are mapped for.
    pub host: &'a HostIdentity,
    /// What no mount may allow.
    pub forbid: Forbid,
    /// The SELinux label of a tmpfs and of an image.
    pub label: Option<&'a str>,
}

/// Makes the tree of a mount that is no host path: an image or a tmpfs. `number` tells it from others of `stage`.
///
/// Errors: the image cannot be mounted, or has no such sub path.
pub fn make(
    mount: &Mount,
    number: usize,
    stage: &Stage,
    options: &MountOptions<'_>,
) -> Result<OwnedFd> {
    let (host, label) = (options.host, options.label);
    let what = || format!("make the mount at {}", mount.target);
    let forbid = forbidden(mount, options.forbid);
    match &mount.kind {
        MountKind::Bind => open_bind(mount),
        MountKind::Tmpfs { bytes, mode } => {
            let (size, mode) = (bytes.to_string(), format!("{mode:o}"));
            let (uid, gid) = (host.root.to_string(), host.root.to_string());
            let mut settings = vec![(c"size", Some(&*size)), (c"mode", Some(&*mode))];
            if host.root != 0 {
                settings.extend([(c"uid", Some(&*uid)), (c"gid", Some(&*gid))]);
            }
            settings.extend(label.map(|label| (c"context", Some(label))));
            mounts::filesystem(c"tmpfs", &settings, forbid).during(what)
        }
        MountKind::Image { layers, sub_path } => {
            let mut names = stage.layers(&format!("v{number}-"), layers, host)?;
            if names.len() == 1 && label.is_some() {
                // One layer has the labels of the disk; an overlay has its own, and two layers at least.
                names.push(format!("v{number}-none"));
                stage.new_mount_point(&format!("v{number}-none"))?;
            }
            let tree = match names.as_slice() {
                [] => mounts::tmpfs("4k").during(what)?,
                [only] => mounts::clone_at(stage.mount_point(only)?.as_fd()).during(what)?,
                several => mounts::overlay(several, None, label).during(what)?,
            };
            let tree = sub_tree(tree, sub_path, &format!("i{number}"), stage)?;
            mounts::set_attributes(tree.as_fd(), forbid.and_writes(true), None, true)
                .during(what)?;
            Ok(tree)
        }
    }
}

/// The part of `tree` at `sub_path`, found inside it whatever links say.
fn sub_tree(tree: OwnedFd, sub_path: &str, name: &str, stage: &Stage) -> Result<OwnedFd> {
    if sub_path.is_empty() {
        return Ok(tree);
    }
    let what = || format!("find sub path {sub_path:?} of the image");
    // A copy can be taken only of what is attached somewhere (before Linux 6.15).
    let target = stage.new_mount_point(name)?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(what)?;
    let found = rootfs_path::inside(tree.as_fd(), sub_path).during(what)?;
    mounts::clone_at(found.as_fd()).during(what)
}

/// Attaches `tree` at `path` below `root`, where a directory or an empty file is made if nothing is there.
///
/// Errors: the path cannot be made, or the kernel refuses the mount.
pub fn attach(root: &OwnedFd, tree: &OwnedFd, path: &str) -> Result<()> {
    let what = || format!("mount at {path}");
    let directory = rootfs_path::is_dir(tree).during(what)?;
    let target = rootfs_path::ensure(root.as_fd(), path, directory).during(what)?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(what)
}
