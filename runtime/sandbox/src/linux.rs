//! Builds the root of a Linux container: image, kernel filesystems, devices, volumes, masks.
//!
//! A container process calls it right after its fork, in two parts: [`prepare`] as host root in its own mount
//! namespace, and [`finish`] in the same process or in one that it forked into the pod's user or pid namespace. Before
//! that fork, [`Prepared::leave_node`] removes the node's mounts.
//!
//! ```text
//! prepare: cgroups -> host paths opened -> mounts private -> overlay -> volumes as detached trees
//! [leave_node: the stage becomes the root]
//! finish:  net/ipc/uts/cgroup -> root attached -> /proc /dev /sys -> volumes -> masks -> read-only -> pivot
//! ```
//! Invariants: `prepare` opens every host path, once, by descriptor; `finish` resolves paths only below the new root;
//! kernel filesystems are mounted before any volume, and `/dev` is filled before a volume could cover it.
//! Credentials, seccomp and execve are in coracle-runtime.

mod dev;
mod kernel;
mod terminal;

pub use dev::pod_shared_memory;
pub use terminal::join_terminal;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::fchdir;

use super::identity::HostIdentity;
use super::root;
use super::stage::Stage;
use super::{PodNamespaces, enter_cgroups, join, rootfs_path, set_oom_score, volume};
use coracle_spec::error::{Context as _, Result};
use coracle_spec::failpoint;
use coracle_spec::{ContainerSpec, LinuxSpec, Mount, MountKind};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

/// The result of [`prepare`].
pub struct Prepared {
    stage: Stage,
    /// The overlay, not attached yet.
    tree: OwnedFd,
    /// A tree for each mount of the spec, in order.
    volumes: Vec<OwnedFd>,
    /// Host files that are bind-mounted where making them is not possible or not wanted.
    bound: dev::Bound,
}

/// Does the steps that need host root: enters cgroups, opens host paths, makes the overlay.
///
/// Errors: the first step that failed, by name.
pub fn prepare(spec: &ContainerSpec, linux: &LinuxSpec, pod: &PodNamespaces) -> Result<Prepared> {
    enter_cgroups(spec)?;
    set_oom_score(spec.oom_score_adj)?;
    failpoint::hit("guest.jail").during(|| "build the jail".into())?;
    let host = host_identity(spec, pod)?;
    let binds = open_binds(spec)?;
    let bound = dev::Bound::open(linux, pod)?;
    mounts::make_all_private().during(|| "make mounts private".into())?;
    let stage = Stage::over(&spec.staging)?;
    if host.map.is_some() {
        // An overlay works with the ids of who made it, and host root is nobody on mapped layers. Entering the user
        // namespace resets both settings.
        root::create_files_as(host.root)?;
    }
    let tree = root::base(spec, &host, &stage, Forbid::default())?;
    let options = volume::MountOptions {
        host: &host,
        forbid: Forbid::default(),
        label: linux.jail.mount_label.as_deref(),
    };
    let mut volumes = Vec::with_capacity(binds.len());
    for ((number, mount), bind) in spec.mounts.iter().enumerate().zip(binds) {
        volumes.push(match bind {
            Some(tree) => {
                volume::restrict(&tree, mount, &host, Forbid::default(), false)?;
                tree
            }
            None => volume::make(mount, number, &stage, &options)?,
        });
    }
    Ok(Prepared {
        stage,
        tree,
        volumes,
        bound,
    })
}

/// For each mount of `spec` its host path, opened; `None` if it is not a bind mount.
fn open_binds(spec: &ContainerSpec) -> Result<Vec<Option<OwnedFd>>> {
    let open = |mount: &Mount| match mount.kind {
        MountKind::Bind => volume::open_bind(mount).map(Some),
        _ => Ok(None),
    };
    spec.mounts.iter().map(open).collect()
}

impl Prepared {
    /// Makes the stage the root of this mount namespace: from here on this process and its children see the container's
    /// layers and volumes and nothing of the node.
    ///
    /// With `userns` the stage shows the node's `/proc` and `/sys`, because inside a user namespace the kernel mounts
    /// new ones only where others are visible already. Errors: the first mount that failed, by name.
    pub fn leave_node(&self, userns: bool) -> Result<()> {
        for name in ["proc", "sys"].iter().filter(|_| userns) {
            let path = Path::new("/").join(name);
            let what = || format!("show {} to a user namespace", path.display());
            // Without the mounts below it. If the runtime is itself in a user namespace, the kernel refuses to leave
            // them out.
            let tree = match mounts::clone_tree(&path, false) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => mounts::clone_tree(&path, true),
                tree => tree,
            };
            let at = self.stage.new_mount_point(name)?;
            mounts::attach(tree.during(what)?.as_fd(), at.as_fd()).during(what)?;
        }
        mounts::pivot_into_working_directory().during(|| "leave the node's mounts".into())
    }
}

/// The ids of a Linux payload: the host's own, or those of its pod's user namespace, whose map its mounts have.
fn host_identity(spec: &ContainerSpec, pod: &PodNamespaces) -> Result<HostIdentity> {
    let who = &spec.identity;
    let map = pod.user.as_ref().map(OwnedFd::try_clone).transpose();
    let map = map.during(|| "share the pod's user namespace".into())?;
    Ok(HostIdentity {
        uid: who.uid,
        gid: who.gid,
        groups: who.groups.clone(),
        root: if map.is_some() { who.range.base } else { 0 },
        map,
    })
}

/// Builds the root and enters it. Returns the controlling side of the terminal, if there is one; the other side has
/// become this process's standard streams.
///
/// Errors: the first step that failed, by name.
pub fn finish(
    spec: &ContainerSpec,
    linux: &LinuxSpec,
    prepared: Prepared,
    pod: &PodNamespaces,
) -> Result<Option<OwnedFd>> {
    join(pod)?;
    if kernel::has_own_cgroup_namespace(linux) {
        super::unshare(rustix::thread::UnshareFlags::NEWCGROUP, "cgroup")?;
    }
    sys::ids::set_umask(0);
    let Prepared {
        stage,
        tree,
        volumes,
        bound,
    } = prepared;
    let at = stage.mount_point("root")?;
    mounts::attach(tree.as_fd(), at.as_fd()).during(|| "attach the root".into())?;
    let root = stage.mount_point("root")?;
    kernel::proc(&root)?;
    let terminal = dev::build(&root, linux, pod, &bound, spec.identity.uid)?;
    kernel::sys(&root, linux, bound.sys())?;
    kernel::cgroups(&root, linux)?;
    for (mount, tree) in spec.mounts.iter().zip(&volumes) {
        volume::attach(&root, tree, &mount.target)?;
    }
    image_volumes(spec, linux, &root, &stage)?;
    // Made now, while that is possible. Entering it reports errors.
    let _ = rootfs_path::ensure(root.as_fd(), &linux.working_dir, true);
    kernel::confine(&root, &linux.jail, &bound)?;
    if spec.root.readonly {
        mounts::set_attributes(root.as_fd(), Forbid::WRITES, None, false)
            .during(|| "make the root read-only".into())?;
    }
    drop(volumes);
    fchdir(&root).during(|| "enter the new root".into())?;
    mounts::pivot_into_working_directory().during(|| "make the new root the root".into())?;
    Ok(terminal)
}

/// Makes the image's `VOLUME` directories, which stay writable in a read-only root: each is an overlay over itself,
/// with the container's own writable layer.
fn image_volumes(
    spec: &ContainerSpec,
    linux: &LinuxSpec,
    root: &OwnedFd,
    stage: &Stage,
) -> Result<()> {
    let covered = |path: &str| spec.mounts.iter().any(|mount| mount.target == path);
    let open = linux.jail.volumes.iter().filter(|path| !covered(path));
    for (number, path) in open.enumerate() {
        let what = || format!("make the image's volume {path}");
        let found = rootfs_path::ensure(root.as_fd(), path, true).during(what)?;
        if !spec.root.readonly || !rootfs_path::is_dir(&found).during(what)? {
            continue;
        }
        let (lower, upper) = (format!("w{number}"), format!("own/volume-{number}"));
        let copy = mounts::clone_at(found.as_fd()).during(what)?;
        let at = stage.new_mount_point(&lower)?;
        mounts::attach(copy.as_fd(), at.as_fd()).during(what)?;
        for part in ["", "/upper", "/work"] {
            make_directory(Path::new(&format!("{upper}{part}"))).during(what)?;
        }
        owned_alike(&found, &format!("{upper}/upper")).during(what)?;
        let own = (&*format!("{upper}/upper"), &*format!("{upper}/work"));
        let tree =
            mounts::overlay(&[lower], Some(own), linux.jail.mount_label.as_deref()).during(what)?;
        mounts::attach(tree.as_fd(), found.as_fd()).during(what)?;
    }
    Ok(())
}

/// Gives directory `path` the owner and mode of `of`: an overlay's root has those of its upper directory.
fn owned_alike(of: &OwnedFd, path: &str) -> std::io::Result<()> {
    use rustix::fs::{Gid, Mode, Uid, chmod, chown, fstat};
    let found = fstat(of)?;
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    chown(path, Some(uid), Some(gid))?;
    Ok(chmod(path, Mode::from_raw_mode(found.st_mode & 0o7777))?)
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}
