//! `/proc`, `/sys` and the cgroup tree of a Linux container, and its masked and read-only paths.
//!
//! Called by [`super::finish`]. Invariants: these filesystems are mounted on ordinary directories only; a file is
//! masked with a `/dev/null` that we made ourselves, never with one that an image or a volume could have put there.
//! The spec decides which paths are masked.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, mkdirat, symlinkat};

use super::dev::Bound;
use crate::rootfs_path;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{CgroupMount, LinuxJail, LinuxSpec};
use coracle_sys::mounts::{self, Forbid};

/// Whether the container has its own cgroup namespace. A privileged one sees the node's unified tree, as with
/// containerd.
pub(super) fn has_own_cgroup_namespace(linux: &LinuxSpec) -> bool {
    let unified = matches!(linux.cgroups.as_slice(), [only] if only.directory.is_empty());
    !(linux.jail.privileged && unified)
}

/// Mounts `/proc` of the process's own pid namespace.
pub(super) fn proc(root: &OwnedFd) -> Result<()> {
    let what = || "mount proc at /proc".to_owned();
    let at = rootfs_path::plain_directory(root.as_fd(), "proc").during(what)?;
    let tree = mounts::filesystem(c"proc", &[], Forbid::PRIVILEGE).during(what)?;
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)
}

/// Mounts `/sys` of the process's own network namespace, or the node's where that is the node's and ours to bind only.
pub(super) fn sys(root: &OwnedFd, linux: &LinuxSpec, bound: Option<&OwnedFd>) -> Result<()> {
    let what = || "mount sysfs at /sys".to_owned();
    let at = rootfs_path::plain_directory(root.as_fd(), "sys").during(what)?;
    let forbid = Forbid::PRIVILEGE.and_writes(!linux.jail.privileged);
    let made;
    let tree = match bound {
        Some(tree) => {
            mounts::set_attributes(tree.as_fd(), forbid, None, true).during(what)?;
            tree
        }
        None => {
            made = mounts::filesystem(c"sysfs", &[], forbid).during(what)?;
            &made
        }
    };
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)
}

/// Mounts the container's own cgroups below `/sys/fs/cgroup`.
pub(super) fn cgroups(root: &OwnedFd, linux: &LinuxSpec) -> Result<()> {
    let what = || "mount cgroups at /sys/fs/cgroup".to_owned();
    let writes = !linux.jail.privileged;
    let at = rootfs_path::inside(root.as_fd(), "sys/fs/cgroup").during(what)?;
    if let [only] = linux.cgroups.as_slice()
        && only.directory.is_empty()
    {
        let tree = hierarchy(only, writes).during(what)?;
        return mounts::attach(tree.as_fd(), at.as_fd()).during(what);
    }
    let options = [(c"mode", Some("0755")), (c"size", Some("64k"))];
    let tree = mounts::filesystem(c"tmpfs", &options, Forbid::PRIVILEGE).during(what)?;
    for mount in &linux.cgroups {
        let what = || format!("mount cgroups at /sys/fs/cgroup/{}", mount.directory);
        mkdirat(&tree, &*mount.directory, Mode::from_raw_mode(0o755)).during(what)?;
        for controller in &mount.controllers {
            if *controller != mount.directory && !controller.starts_with("name=") {
                // Two hierarchies never share a controller, so the name is free.
                symlinkat(&*mount.directory, &tree, &**controller).during(what)?;
            }
        }
    }
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)?;
    for mount in &linux.cgroups {
        let what = || format!("mount cgroups at /sys/fs/cgroup/{}", mount.directory);
        let own = hierarchy(mount, writes).during(what)?;
        let at = rootfs_path::inside(tree.as_fd(), &mount.directory).during(what)?;
        mounts::attach(own.as_fd(), at.as_fd()).during(what)?;
    }
    mounts::set_attributes(
        tree.as_fd(),
        Forbid::PRIVILEGE.and_writes(writes),
        None,
        false,
    )
    .during(what)
}

fn hierarchy(mount: &CgroupMount, writes: bool) -> std::io::Result<OwnedFd> {
    let forbid = Forbid::PRIVILEGE.and_writes(writes);
    if mount.controllers.is_empty() {
        return mounts::filesystem(c"cgroup2", &[], forbid);
    }
    let mut options = Vec::new();
    let names: Vec<std::ffi::CString> = mount
        .controllers
        .iter()
        .filter(|name| !name.starts_with("name="))
        .filter_map(|name| std::ffi::CString::new(name.as_str()).ok())
        .collect();
    for controller in &mount.controllers {
        if let Some(name) = controller.strip_prefix("name=") {
            options.push((c"none", None));
            options.push((c"name", Some(name)));
        }
    }
    options.extend(names.iter().map(|name| (name.as_c_str(), None)));
    mounts::filesystem(c"cgroup", &options, forbid)
}

/// Masks and write-protects the paths of the spec. A path that does not exist is skipped.
///
/// Errors: a path cannot be covered. That is fatal, it is never left open.
pub(super) fn confine(root: &OwnedFd, jail: &LinuxJail, bound: &Bound) -> Result<()> {
    for path in &jail.readonly_paths {
        let what = || format!("make {path} read-only");
        let Some(at) = find(root, path).during(what)? else {
            continue;
        };
        let tree = mounts::clone_all_at(at.as_fd()).during(what)?;
        mounts::set_attributes(tree.as_fd(), Forbid::WRITES, None, true).during(what)?;
        mounts::attach(tree.as_fd(), at.as_fd()).during(what)?;
    }
    for path in &jail.masked_paths {
        let what = || format!("mask {path}");
        let Some(at) = find(root, path).during(what)? else {
            continue;
        };
        let tree = match rootfs_path::is_dir(&at).during(what)? {
            true => empty_directory().during(what)?,
            false => mounts::clone_at(bound.null().as_fd()).during(what)?,
        };
        mounts::attach(tree.as_fd(), at.as_fd()).during(what)?;
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &str) -> std::io::Result<Option<OwnedFd>> {
    match rootfs_path::inside(root.as_fd(), path) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        other => other.map(Some),
    }
}

fn empty_directory() -> std::io::Result<OwnedFd> {
    let forbid = Forbid::default().and_writes(true);
    mounts::filesystem(c"tmpfs", &[(c"size", Some("4k"))], forbid)
}
