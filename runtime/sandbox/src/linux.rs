//! Builds the root of a Linux container: image, kernel filesystems, devices, volumes, masks.
//!
//! A container process calls it right after its fork, in two parts: [`prepare`] as host root, which begins in the node's
//! mount namespace and ends in namespaces of its own and of the pod, and [`finish`] in the same process or in one that it
//! forked into the pod's user or pid namespace. Before that fork, [`Prepared::make_stage_root`] drops what is below the
//! stage.
//!
//! ```text
//! prepare: cgroups -> host paths opened -> node left -> overlay -> volumes as detached trees -> net/ipc/uts
//! [make_stage_root]
//! finish:  cgroup -> root attached -> /proc /dev /sys -> volumes -> hooks -> masks -> read-only -> pivot
//! ```
//! Invariants: `prepare` opens every host path, once, by descriptor; `finish` resolves paths only below the new root;
//! kernel filesystems are mounted before any volume, and `/dev` is filled before a volume could cover it.
//! Credentials, seccomp and execve are in coracle-runtime.

mod dev;
mod hooks;
mod kernel;
mod terminal;

pub use dev::pod_shared_memory;
pub use terminal::join_terminal;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::fchdir;

use super::identity::HostIdentity;
use super::root::{self, Base};
use super::stage::Stage;
use super::volume::{self, Source};
use super::{PodNamespaces, enter_cgroups, join, rootfs_path, set_oom_score};
use coracle_spec::error::{Context as _, Result};
use coracle_spec::failpoint;
use coracle_spec::{ContainerSpec, LinuxSpec, MountKind};
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
    let sources = Source::open_all(spec, &host)?;
    let bound = dev::Bound::open(linux, pod)?;
    let base = Base::open(spec, &host, Forbid::default())?;
    let shown = shown(pod.user.is_some() && linux.userns)?;
    let view = hooks::View::open(spec, &linux.hooks)?;
    let stage = Stage::apart_from_node(pod.empty()?)?;
    for (name, tree) in shown {
        stage.hold(name, &tree)?;
    }
    view.map_or(Ok(()), |view| view.hold(&linux.hooks, &stage))?;
    if host.map.is_some() {
        // An overlay works with the ids of who made it, and host root is nobody on mapped layers. Entering the user
        // namespace resets both settings.
        root::create_files_as(host.root)?;
    }
    let tree = base.mount(spec, &stage, Forbid::default())?;
    let options = volume::MountOptions {
        host: &host,
        forbid: Forbid::default(),
        label: linux.jail.mount_label.as_deref(),
    };
    let mut volumes = Vec::with_capacity(sources.len());
    for ((number, mount), source) in spec.mounts.iter().enumerate().zip(sources) {
        let tree = volume::make(mount, number, source, &stage, &options)?;
        if mount.kind == MountKind::Bind {
            let map = host.map.as_ref().map(AsFd::as_fd);
            volume::restrict(&tree, mount, map, Forbid::default(), false)?;
        }
        volumes.push(tree);
    }
    // Before a fork into a pid namespace of the pod: whoever sees a process there sees its network.
    join(pod)?;
    Ok(Prepared {
        stage,
        tree,
        volumes,
        bound,
    })
}

/// The node's `/proc` and `/sys`, for the stage of a container in a user namespace: there the kernel mounts new ones only
/// where others are visible already. None with `userns` unset.
fn shown(userns: bool) -> Result<Vec<(&'static str, OwnedFd)>> {
    let open = |name: &'static str| {
        let path = Path::new("/").join(name);
        // Without the mounts below it. If the runtime is itself in a user namespace, the kernel refuses to leave
        // them out.
        let tree = match mounts::clone_tree(&path, false) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => mounts::clone_tree(&path, true),
            tree => tree,
        };
        let tree = tree.during(|| format!("show {} to a user namespace", path.display()))?;
        Ok((name, tree))
    };
    let names = ["proc", "sys"].into_iter().filter(|_| userns);
    names.map(open).collect()
}

impl Prepared {
    /// Makes the stage the root of this mount namespace, so that it is all that a process in the pod's user or pid
    /// namespace begins with. Errors: the kernel refuses it.
    pub fn make_stage_root(&self) -> Result<()> {
        mounts::cover_root_with_working_directory().during(|| "make the stage the root".into())
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
    let place = || match linux.hooks.is_empty() {
        true => stage.mount_point("root"),
        false => hooks::root_of(&stage, &linux.hooks),
    };
    mounts::attach(tree.as_fd(), place()?.as_fd()).during(|| "attach the root".into())?;
    let root = place()?;
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
    hooks::run(spec, &linux.hooks, &stage)?;
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
/// with the container's own writable layer. One that lies on another mount than the root is left as that mount has it.
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
        // By a link of the image, or inside a volume of the pod. An overlay reads with our rights what is below it.
        if !rootfs_path::is_same_mount(root, &found).during(what)? {
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
