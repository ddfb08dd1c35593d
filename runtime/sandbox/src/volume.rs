//! The mounts of a container, each as a detached tree that is ready to be attached.
//!
//! Called by the builders of both kinds of roots. A host path is opened once and mounted by descriptor, so that nobody
//! can replace it between check and use.
//! Invariants: a tree has the pod's id map and every restriction before it is visible; an image is read-only.
//! The builders decide where a tree is attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::identity::{HostIdentity, unmapped_identity};
use super::rootfs_path;
use super::stage::{self, Stage, cannot_map};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, Mount, MountKind, MountPropagation};
use coracle_sys::mounts::{self, Forbid, Propagation};

/// The restrictions of `mount`, besides those of the sandbox for all mounts.
fn forbidden(mount: &Mount, everywhere: Forbid) -> Forbid {
    Forbid {
        writes: everywhere.writes || mount.readonly,
        setid: everywhere.setid || mount.nosuid,
        devices: everywhere.devices || mount.nodev,
        exec: everywhere.exec || mount.noexec,
    }
}

/// What a mount has from the node, opened while the node's mounts are in sight.
pub enum Source {
    /// The tree of a bind mount.
    Bind(OwnedFd),
    /// The layers of an image, lowest first.
    Image(Vec<OwnedFd>),
    /// Nothing.
    None,
}

impl Source {
    /// That of each mount of `spec`, in order.
    ///
    /// Errors: a path no longer exists or cannot be mounted; an image's filesystem does not support id maps.
    pub fn open_all(spec: &ContainerSpec, host: &HostIdentity) -> Result<Vec<Self>> {
        Self::open(spec, host, open_bind)
    }

    /// The same with the id map of `mapped` on bind mounts; all without a map, and the identity that goes with that, if the
    /// file system of one has none.
    ///
    /// Errors: as of [`Source::open_all`]; such a filesystem, by name, in a container that runs as root.
    pub fn open_mapped(
        spec: &ContainerSpec,
        mapped: HostIdentity,
    ) -> Result<(Vec<Self>, HostIdentity)> {
        let map = mapped.map.as_ref().map(AsFd::as_fd);
        let mut trees = Vec::new();
        for mount in spec.mounts.iter().filter(|m| m.kind == MountKind::Bind) {
            let tree = open_bind(mount)?;
            if let Err(e) = mounts::set_attributes(tree.as_fd(), Forbid::default(), map, true) {
                let host = unmapped_identity(spec).ok_or_else(|| cannot_map(&mount.source, e))?;
                return Ok((Self::open_all(spec, &host)?, host));
            }
            trees.push(tree);
        }
        let mut trees = trees.into_iter();
        let next = |mount: &Mount| trees.next().map_or_else(|| open_bind(mount), Ok);
        Ok((Self::open(spec, &mapped, next)?, mapped))
    }

    fn open(
        spec: &ContainerSpec,
        host: &HostIdentity,
        mut bind: impl FnMut(&Mount) -> Result<OwnedFd>,
    ) -> Result<Vec<Self>> {
        let open = |mount: &Mount| match &mount.kind {
            MountKind::Bind => bind(mount).map(Self::Bind),
            MountKind::Image { layers, .. } => stage::open_layers(layers, host).map(Self::Image),
            MountKind::Tmpfs { .. } => Ok(Self::None),
        };
        spec.mounts.iter().map(open).collect()
    }
}

/// Opens the host path of a bind mount, with everything mounted below it and its propagation.
fn open_bind(mount: &Mount) -> Result<OwnedFd> {
    let what = || format!("mount {} at {}", mount.source.display(), mount.target);
    let tree = mounts::clone_with_propagation(&mount.source).during(what)?;
    let propagation = match mount.propagation {
        MountPropagation::Private => Propagation::Private,
        MountPropagation::Slave => Propagation::Slave,
        MountPropagation::Shared => Propagation::Shared,
    };
    mounts::set_propagation(tree.as_fd(), propagation).during(what)?;
    Ok(tree)
}

/// Restricts an opened bind mount and sets its id `map`, unless it has one already. With `all`, also for mounts below it.
///
/// Errors: its filesystem, by name, does not support id maps.
pub fn restrict(
    tree: &OwnedFd,
    mount: &Mount,
    map: Option<BorrowedFd<'_>>,
    everywhere: Forbid,
    all: bool,
) -> Result<()> {
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

/// Options of all mounts of a container.
pub struct MountOptions<'a> {
    /// The owner of files in a tmpfs, and the id map of images.
    pub host: &'a HostIdentity,
    /// Restrictions of all mounts.
    pub forbid: Forbid,
    /// The SELinux label of a tmpfs and of an image.
    pub label: Option<&'a str>,
}

/// Makes the tree of a mount from its `source`. `number` is its name in `stage`.
///
/// Errors: the image cannot be mounted, or has no such sub path.
pub fn make(
    mount: &Mount,
    number: usize,
    source: Source,
    stage: &Stage,
    options: &MountOptions<'_>,
) -> Result<OwnedFd> {
    let label = options.label;
    let what = || format!("make the mount at {}", mount.target);
    let forbid = forbidden(mount, options.forbid);
    let layers = match source {
        Source::Bind(tree) => return Ok(tree),
        Source::Image(layers) => layers,
        Source::None => Vec::new(),
    };
    match &mount.kind {
        MountKind::Bind => Err(Error::new(Kind::Bug, what())),
        MountKind::Tmpfs { bytes, mode } => tmpfs(*bytes, *mode, forbid, options).during(what),
        MountKind::Image { sub_path, .. } => {
            let mut names = stage.layers(&format!("v{number}-"), &layers)?;
            if names.len() == 1 && label.is_some() {
                // A single layer has the labels on disk. An overlay has its own label, and needs at least two layers.
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

/// A tmpfs of at most `bytes`, whose root has the permission bits `mode`.
fn tmpfs(
    bytes: u64,
    mode: u32,
    forbid: Forbid,
    options: &MountOptions<'_>,
) -> std::io::Result<OwnedFd> {
    let (size, mode) = (bytes.to_string(), format!("{mode:o}"));
    let owner = options.host.root.to_string();
    let mut settings = vec![(c"size", Some(&*size)), (c"mode", Some(&*mode))];
    if options.host.root != 0 {
        settings.extend([(c"uid", Some(&*owner)), (c"gid", Some(&*owner))]);
    }
    settings.extend(options.label.map(|label| (c"context", Some(label))));
    mounts::filesystem(c"tmpfs", &settings, forbid)
}

/// The part of `tree` at `sub_path`. Links do not lead out of it.
fn sub_tree(tree: OwnedFd, sub_path: &str, name: &str, stage: &Stage) -> Result<OwnedFd> {
    if sub_path.is_empty() {
        return Ok(tree);
    }
    let what = || format!("find sub path {sub_path:?} of the image");
    // Before Linux 6.15 only an attached tree can be copied.
    let target = stage.new_mount_point(name)?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(what)?;
    let found = rootfs_path::inside(tree.as_fd(), sub_path).during(what)?;
    mounts::clone_at(found.as_fd()).during(what)
}

/// Where the kernel's file systems are in a container.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The part of them that holds nothing of the kernel's. Images have links to it, such as `/run/shm`.
const SHARED_MEMORY: &str = "/dev/shm";

/// Where the kernel's file system is into which a link leads `path`, if that of `resolved` is one.
fn led_into(path: &str, resolved: &str) -> Option<&'static str> {
    let (path, resolved) = (Path::new(path), Path::new(resolved));
    let is_led = |at: &&str| resolved.starts_with(at) && !path.starts_with(at);
    let found = KERNELS.into_iter().find(is_led);
    found.filter(|_| !resolved.starts_with(SHARED_MEMORY))
}

/// Attaches `tree` at `path` below `root`; makes a directory or an empty file there if the path is missing.
///
/// Errors: the path cannot be made or leads by a link into a file system of the kernel's, or the kernel refuses the mount.
pub fn attach(root: &OwnedFd, tree: &OwnedFd, path: &str) -> Result<()> {
    let what = || format!("mount at {path}");
    let directory = rootfs_path::is_dir(tree).during(what)?;
    let (target, resolved) =
        rootfs_path::ensure_resolved(root.as_fd(), path, directory).during(what)?;
    // What the path itself names has been checked. There it would hide files from what confines the container later.
    if let Some(at) = led_into(path, &resolved) {
        let text = format!(
            "{}: a link leads it to {resolved}, and {at} is the kernel's",
            what()
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    mounts::attach(tree.as_fd(), target.as_fd()).during(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_no_mount_into_the_kernels_but_into_shared_memory() {
        for (path, resolved, at) in [
            ("/run/x", "/proc/sys", Some("/proc")),
            ("/dev/x", "/sys/kernel", Some("/sys")),
            ("/run/x", "/dev/pts", Some("/dev")),
            ("/run/x", "/dev/shmx", Some("/dev")),
            ("/run/shm", "/dev/shm", None),
            ("/run/shm/a", "/dev/shm/a", None),
            ("/dev/shm", "/dev/shm", None),
            ("/data", "/srv/dev", None),
        ] {
            assert_eq!(led_into(path, resolved), at, "{path} at {resolved}");
        }
    }
}
