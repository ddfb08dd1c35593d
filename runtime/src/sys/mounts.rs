//! The fd-based mount calls: clone a tree, change its attributes and id map, make an overlay, attach.
//!
//! Called by `sandbox` inside a guest's own mount namespace.
//! Invariant: no call here resolves a path of an image; callers pass descriptors or host paths of our own.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

/// What a mount forbids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forbid {
    /// No writes.
    pub writes: bool,
    /// No set-id bits, no device nodes, no execution.
    pub privilege: bool,
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
        set: 0,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    if forbid.writes {
        attr.set |= ATTR_RDONLY;
    }
    if forbid.privilege {
        attr.set |= ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    }
    if let Some(userns) = userns {
        attr.set |= ATTR_IDMAP;
        attr.userns = u64::from(userns.as_raw_fd().unsigned_abs());
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid empty C string, `attr` has the layout of struct mount_attr version 0 and its size
    // is passed along; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A detached copy of the mount tree at `path`, with everything mounted below it when `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(CWD, path, flags)?)
}

/// Attaches the detached `tree` on the directory or file `target`.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, c"", target, c"", flags)?)
}

/// A detached, empty tmpfs of at most `size` (such as `64k`).
pub fn tmpfs(size: &str) -> io::Result<OwnedFd> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"size", size)?;
    fsconfig_set_string(context.as_fd(), c"mode", "0700")?;
    fsconfig_create(context.as_fd())?;
    finish(context.as_fd())
}

/// A detached overlay of `lower` (topmost first, at least one) and a writable `upper` with its `work`.
pub fn overlay(lower: &str, upper: &str, work: &str) -> io::Result<OwnedFd> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        (c"lowerdir", lower),
        (c"upperdir", upper),
        (c"workdir", work),
    ] {
        set(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    finish(context.as_fd())
}

fn set(context: BorrowedFd<'_>, key: &CStr, value: &str) -> io::Result<()> {
    Ok(fsconfig_set_string(context, key, value)?)
}

fn finish(context: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Stops mount events from passing between this namespace and its parent, both ways.
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
