//! The fd-based mount calls: clone a tree, change its attributes and id map, make an overlay, attach.
//!
//! Called by `sandbox` inside a container's own mount namespace.
//! Invariants: no call here resolves a path of an image; callers pass descriptors or host paths of our own; the namespace
//! that the kernel counts for a mount in the making counts for no user that a container can be.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::fchdir;

use super::maker::Maker;

/// Restrictions of a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forbid {
    /// No writes.
    pub writes: bool,
    /// Set-id bits have no effect.
    pub setid: bool,
    /// Device nodes do not work.
    pub devices: bool,
    /// Nothing can be executed.
    pub exec: bool,
}

impl Forbid {
    /// Set-id bits, device nodes and execution.
    pub const PRIVILEGE: Self = Self {
        writes: false,
        setid: true,
        devices: true,
        exec: true,
    };
    /// Writes alone.
    pub const WRITES: Self = Self {
        writes: true,
        setid: false,
        devices: false,
        exec: false,
    };

    /// The same, and writes if `writes`.
    pub fn and_writes(self, writes: bool) -> Self {
        Self { writes, ..self }
    }

    fn bits(self) -> u64 {
        let all = [
            (self.writes, ATTR_RDONLY),
            (self.setid, ATTR_NOSUID),
            (self.devices, ATTR_NODEV),
            (self.exec, ATTR_NOEXEC),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum()
    }
}

/// Mount propagation between a mount and its copies. Source: mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the original to the copy.
    Slave,
    /// Both ways, as the original has it.
    Shared,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

const ATTR_RDONLY: u64 = 0x1;
const ATTR_NOSUID: u64 = 0x2;
const ATTR_NODEV: u64 = 0x4;
const ATTR_NOEXEC: u64 = 0x8;
const ATTR_IDMAP: u64 = 0x0010_0000;

/// Changes the attributes of `tree` (a mount root), with the id map of `userns` if one is given.
///
/// Errors: EINVAL when the filesystem cannot be idmapped or is idmapped already; EPERM without privilege.
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    forbid: Forbid,
    userns: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let mut attr = MountAttr {
        set: forbid.bits(),
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    if let Some(userns) = userns {
        attr.set |= ATTR_IDMAP;
        attr.userns = u64::from(userns.as_raw_fd().unsigned_abs());
    }
    change(tree, &attr, recursive)
}

/// Sets the propagation of `tree` and everything mounted below it.
///
/// Errors: EINVAL when `tree` is no mount root.
pub fn set_propagation(tree: BorrowedFd<'_>, propagation: Propagation) -> io::Result<()> {
    let flag = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => return Ok(()),
    };
    let attr = MountAttr {
        set: 0,
        clear: 0,
        propagation: flag,
        userns: 0,
    };
    change(tree, &attr, true)
}

fn change(tree: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid empty C string, `attr` has the layout of struct mount_attr version 0 and its size
    // is passed along; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A detached private copy of the mount tree at `path`, with everything mounted below it when `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    private(counted(|| open_tree(CWD, path, flags))?)
}

/// A detached copy of the mount tree at `path` and everything below it, which is a peer of what is shared there: what is
/// mounted on one shows on the other until [`set_propagation`] says otherwise.
pub fn clone_with_propagation(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    counted(|| open_tree(CWD, path, flags))
}

/// Attaches the detached `tree` on the directory or file `target`.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, c"", target, c"", flags)?)
}

/// A detached private copy of the mount at `place`, an open directory or file; without what is mounted below it.
///
/// Errors: EINVAL on kernels before 6.15 when `place` is in a detached tree itself.
pub fn clone_at(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    private(counted(|| open_tree(place, c"", flags))?)
}

/// The same with everything that is mounted below it.
pub fn clone_all_at(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    private(counted(|| open_tree(place, c"", flags))?)
}

fn private(tree: OwnedFd) -> io::Result<OwnedFd> {
    set_propagation(tree.as_fd(), Propagation::Private)?;
    Ok(tree)
}

/// A detached new filesystem of `kind`. An option without a value is a flag.
///
/// Errors: the kernel does not have the filesystem (ENODEV), refuses an option (EINVAL) or the caller (EPERM).
pub fn filesystem(
    kind: &CStr,
    options: &[(&CStr, Option<&str>)],
    forbid: Forbid,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if options.iter().all(|(key, _)| *key != c"source") {
        fsconfig_set_string(context.as_fd(), c"source", kind)?;
    }
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
            None => fsconfig_set_flag(context.as_fd(), *key)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let mount = mounted(context.as_fd())?;
    if forbid.bits() != 0 {
        set_attributes(mount.as_fd(), forbid, None, false)?;
    }
    Ok(mount)
}

/// A detached, empty tmpfs of at most `size` (such as `64k`), for its maker alone.
pub fn tmpfs(size: &str) -> io::Result<OwnedFd> {
    filesystem(
        c"tmpfs",
        &[(c"size", Some(size)), (c"mode", Some("0700"))],
        Forbid::default(),
    )
}

/// Longest value that fsconfig(2) takes in one call, bytes.
const MAX_VALUE: usize = 255;

/// A detached overlay of `lower` (topmost first, at least one) and, if given, a writable upper directory with its work
/// directory; paths count from the working directory. With a `label`, everything in it shows that SELinux label.
///
/// The upper directory is volatile: it is for one mount and is not read after a crash of the node. So nothing waits until it
/// is on the disk, neither fsync(2) in it nor its unmount, which would write everything that the file system has of others.
///
/// Errors: EINVAL for an upper directory that had a mount before; E2BIG for more layers than this kernel takes in one option (before 6.5).
pub fn overlay(
    lower: &[String],
    upper: Option<(&str, &str)>,
    label: Option<&str>,
) -> io::Result<OwnedFd> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &CStr, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    set(c"source", "overlay")?;
    let joined = lower.join(":");
    if joined.len() <= MAX_VALUE {
        set(c"lowerdir", &joined)?;
    } else {
        for layer in lower {
            set(c"lowerdir+", layer).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        }
    }
    if let Some(label) = label {
        set(c"context", label)?;
    }
    if let Some((upper, work)) = upper {
        set(c"upperdir", upper)?;
        set(c"workdir", work)?;
        fsconfig_set_flag(context.as_fd(), c"volatile")?;
    }
    fsconfig_create(context.as_fd())?;
    mounted(context.as_fd())
}

/// The filesystem that `context` has made, as a detached mount.
fn mounted(context: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    counted(|| fsmount(context, flags, MountAttrFlags::empty()))
}

/// What `make` gives, a detached mount: it is in a mount namespace of its own, which the kernel counts as any other.
fn counted(make: impl FnOnce() -> rustix::io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let maker = Maker::begin_if_allowed()?;
    let made = make();
    maker.end()?;
    Ok(made?)
}

/// Stops mount propagation between this namespace and its parent, both ways.
pub fn make_all_private() -> io::Result<()> {
    Ok(mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

/// Makes the directory that is the working directory the root of this mount namespace and drops the old one.
pub fn pivot_into_working_directory() -> io::Result<()> {
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Mounts `tree` over the root of this mount namespace, which began as a copy of an empty one: what is covered has no
/// file.
pub fn cover_root(tree: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let covered = openat(CWD, "/", flags, Mode::empty())?;
    attach(tree, covered.as_fd())
}

/// Drops the mount that is the working directory and makes `root`, which covers the namespace's root, that of this process.
///
/// The kernel's pivot_root(2) visits every thread of the machine; this costs the same however many pods run. The process
/// does not count as one that has changed its root (the kernel's current_chrooted() looks at the topmost mount): it could
/// make a user namespace; a guest's filter forbids that.
pub fn enter_covering_root(root: BorrowedFd<'_>) -> io::Result<()> {
    unmount(c".", UnmountFlags::DETACH)?;
    fchdir(root)?;
    Ok(rustix::process::chroot(".")?)
}

/// Moves the mount that is the working directory over the root of this mount namespace and makes it that of this process.
///
/// Costs the same however many pods run, as [`enter_covering_root`] does.
pub fn cover_root_with_working_directory() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let moved = openat(CWD, ".", flags, Mode::empty())?;
    cover_root(moved.as_fd())?;
    Ok(rustix::process::chroot(".")?)
}
