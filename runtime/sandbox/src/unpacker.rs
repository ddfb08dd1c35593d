//! The unpacker's jail: one directory as its root, no network, no access to processes, only privileges over files.
//!
//! Called by the unpacker process while it has one thread and has read nothing.
//! Invariants: it reaches only files of the given directory; its only capabilities are those that change owners, modes
//! and attributes; a system call outside the list kills it.
//! It must not know about limits or other descriptors.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::process::fchdir;
use rustix::thread::UnshareFlags;

use super::rootfs_path::open_dir;
use super::{helper, identity, own_session_keyring, seal, seccomp, unshare};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP. Whiteouts, devices 0/0, need no CAP_MKNOD.
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31;

/// Jails this process in `directory`. Errors: the first step that failed.
pub fn jail(directory: BorrowedFd<'_>) -> Result<()> {
    helper::offer_to_oom_killer()?;
    sys::dump::forbid().during(|| "make the unpacker undumpable".into())?;
    own_session_keyring()?;
    // In the old mount namespace: a new one takes no copies of its mounts. The copy is private, or it could not become the
    // root.
    let tree = mounts::clone_at(directory).during(|| "copy the mount of a layer".into())?;
    mounts::set_attributes(tree.as_fd(), Forbid::PRIVILEGE, None, false)
        .during(|| "restrict the mount of a layer".into())?;
    // It has no own pid namespace, which would take another fork. The filter allows no call on other processes.
    let apart =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    unshare(apart, "unpacker's")?;
    mounts::make_all_private().during(|| "make mounts private".into())?;
    let target = open_dir(Path::new("/proc")).during(|| "open /proc".into())?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(|| "attach a layer".into())?;
    let root = open_dir(Path::new("/proc")).during(|| "open a layer".into())?;
    fchdir(&root).during(|| "enter a layer".into())?;
    mounts::pivot_into_working_directory().during(|| "make a layer the root".into())?;
    become_owner()?;
    seal()?;
    seccomp::install_now(&filter()?, 0)
}

/// Becomes nobody, but creates files as root and keeps capabilities over files.
fn become_owner() -> Result<()> {
    sys::ids::set_umask(0);
    sys::ids::keep_capabilities_over_id_change()
        .during(|| "keep capabilities over the change of user".into())?;
    sys::ids::become_user(identity::NOBODY, identity::NOBODY, &[])
        .during(|| "become nobody".into())?;
    sys::ids::set_filesystem_ids(0, 0).during(|| "make files as root".into())?;
    sys::ids::bound_capabilities(CAPABILITIES).during(|| "bound capabilities".into())?;
    sys::ids::take_capabilities(CAPABILITIES, 0).during(|| "drop capabilities".into())
}

/// Calls for writing a tree, besides memory and threads.
const FILES: &[&str] = &[
    "close",
    "fchmod",
    "fchown",
    "fchownat",
    "fcntl",
    "fsetxattr",
    "fstat",
    "ftruncate",
    "getdents64",
    "linkat",
    "lseek",
    "mkdirat",
    "newfstatat",
    "openat",
    "openat2",
    "poll",
    "ppoll",
    "pread64",
    "read",
    "readv",
    "recvmsg",
    "sendmsg",
    "statx",
    "symlinkat",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

fn broken(cause: libseccomp::error::SeccompError) -> Error {
    Error::with(Kind::Bug, "build the unpacker's seccomp filter", cause)
}

fn filter() -> Result<Vec<u8>> {
    let mut filter = seccomp::fresh()?;
    let restricted = ["mmap", "mprotect", "tgkill", "prlimit64", "getrlimit"];
    let core = seccomp::CORE
        .iter()
        .filter(|name| !restricted.contains(name));
    let plain: Vec<&str> = core.chain(FILES).copied().collect();
    seccomp::allow(&mut filter, &plain)?;
    seccomp::threads(&mut filter)?;
    let equal = |argument, mask: u64, value: u64| {
        ScmpArgCompare::new(argument, ScmpCompareOp::MaskedEqual(mask), value)
    };
    for name in ["mmap", "mprotect"] {
        allow_if(&mut filter, name, &[equal(2, libc::PROT_EXEC as u64, 0)])?;
    }
    let own = u64::from(std::process::id());
    allow_if(&mut filter, "tgkill", &[equal(0, u64::from(u32::MAX), own)])?;
    let kind = u64::from(libc::S_IFMT);
    let fifo = equal(2, kind, u64::from(libc::S_IFIFO));
    allow_if(&mut filter, "mknodat", &[fifo])?;
    let device = equal(2, kind, u64::from(libc::S_IFCHR));
    allow_if(
        &mut filter,
        "mknodat",
        &[device, equal(3, u64::from(u32::MAX), 0)],
    )?;
    for (name, errno) in [
        ("ioctl", libc::ENOTTY),
        ("prlimit64", libc::EPERM),
        ("readlink", libc::ENOENT),
    ] {
        let call = ScmpSyscall::from_name(name).map_err(broken)?;
        let refuse = filter.add_rule(ScmpAction::Errno(errno), call);
        refuse.map_err(broken)?;
    }
    seccomp::export(&filter)
}

fn allow_if(
    filter: &mut ScmpFilterContext,
    name: &str,
    conditions: &[ScmpArgCompare],
) -> Result<()> {
    let call = ScmpSyscall::from_name(name).map_err(broken)?;
    let added = filter.add_rule_conditional(ScmpAction::Allow, call, conditions);
    added.map(drop).map_err(broken)
}
