//! Builds the jail of a guest, in the one order that DESIGN section 6 gives; what runs at the end is not its business.
//!
//! Called by a guest process right after its fork, while it is single-threaded, in the host's mount namespace and as
//! root. Each step is a function; each failure is fatal and named.
//!
//! ```text
//! not dumpable, since its birth -> cgroups -> net/ipc/uts -> keyring -> mounts private -> root and volumes -> pivot
//!         -> rlimits -> identity -> capabilities -> no_new_privs -> Landlock -> seccomp
//!                                                              (then a thread is born and loads the code)
//! ```
//! Invariant: when [`build`] returns, the process is not host root, has no capability, sees only its own root and
//! its volumes, and a system call outside the allow-list kills it.
//! Not here: which payload, logs, CRI.

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod helper;
pub mod identity;
pub mod landlock;
pub mod linux;
pub mod profile;
pub mod root;
mod rootfs_path;
pub mod seccomp;
mod stage;
pub mod unpacker;
mod volume;

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use coracle_spec::ContainerSpec;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::failpoint;
use coracle_sys as sys;

pub use seccomp::Filters;

/// Namespaces of the pod that a guest joins; `None` is the node's own.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    /// Network.
    pub net: Option<OwnedFd>,
    /// System V IPC and POSIX queues.
    pub ipc: Option<OwnedFd>,
    /// Host name.
    pub uts: Option<OwnedFd>,
    /// A user namespace that carries the pod's usual id map; a guest with other ids makes its own.
    pub ids: Option<OwnedFd>,
    /// The pod's own user namespace, in which its Linux containers live.
    pub user: Option<OwnedFd>,
    /// The pod's shared memory, a mounted tmpfs.
    pub shm: Option<OwnedFd>,
    /// A process in whose pid namespace a Linux container is to live, where that is not one of its own.
    pub pids: Option<OwnedFd>,
}

/// Builds the whole jail of `spec` around the calling process, up to but without Landlock and seccomp.
///
/// The process was forked into new mount and pid namespaces. Errors: the first step that failed.
pub fn build(spec: &ContainerSpec, pod: &PodNamespaces) -> Result<()> {
    enter_cgroups(spec)?;
    set_oom_score(spec.oom_score_adj)?;
    failpoint::hit("guest.jail").during(|| "build the jail".into())?;
    join(pod)?;
    within(spec, pod, |host| root::build(spec, host))
}

/// Enters the jail of `spec` that another process has built, by `join`, up to but without Landlock and seccomp; the
/// caller is in its cgroups already. Errors: the first step that failed.
pub fn enter(
    spec: &ContainerSpec,
    pod: &PodNamespaces,
    join: impl FnOnce() -> Result<()>,
) -> Result<()> {
    within(spec, pod, |_| {
        join()?;
        // As the builder of a root has to: the change of user comes before the capabilities are dropped.
        sys::ids::keep_capabilities_over_id_change()
            .during(|| "keep capabilities until they are dropped".into())
    })
}

/// Reaches the root by `arrive`, then takes on identity and limits.
fn within(
    spec: &ContainerSpec,
    pod: &PodNamespaces,
    arrive: impl FnOnce(&identity::HostIdentity) -> Result<()>,
) -> Result<()> {
    own_session_keyring()?;
    let host = identity::host_identity(spec, pod.ids.as_ref())?;
    let host = root::idmapped_identity(spec, host)?;
    arrive(&host)?;
    limit_resources()?;
    sys::ids::become_user(host.uid, host.gid, &host.groups)
        .during(|| format!("become host user {}:{}", host.uid, host.gid))?;
    sys::ids::drop_capabilities().during(|| "drop all capabilities".into())?;
    seal()
}

/// Leaves the maker's session keyring for a new one, as host root and before the filesystem ids are set.
///
/// Errors: whatever the kernel says; there is none with which a container may go on.
pub fn own_session_keyring() -> Result<()> {
    sys::keyring::join_own().during(|| "join a session keyring of its own".into())
}

/// no_new_privs and not dumpable: nothing executed or attached may change what the jail decided.
fn seal() -> Result<()> {
    rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".into())?;
    sys::dump::forbid().during(|| "become undumpable".into())
}

/// Enters the cgroups of `spec` that the calling process was not born into. Errors: the kernel refuses one.
pub fn enter_cgroups(spec: &ContainerSpec) -> Result<()> {
    for file in &spec.cgroup_procs {
        fs::OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut f| f.write_all(b"0"))
            .during(|| format!("enter cgroup {}", file.display()))?;
    }
    Ok(())
}

/// Sets this process's OOM adjustment; a node that does not let us go below what we have gets the nearest it allows.
pub fn set_oom_score(wanted: i32) -> Result<()> {
    let wanted = wanted.clamp(-1000, 1000);
    let write = |value: i32| fs::write("/proc/self/oom_score_adj", value.to_string());
    match write(wanted) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            let have: i32 = fs::read_to_string("/proc/self/oom_score_adj")
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .unwrap_or(0);
            if have > wanted {
                Ok(())
            } else {
                Err(e).during(|| format!("set oom_score_adj to {wanted}"))
            }
        }
        other => other.during(|| format!("set oom_score_adj to {wanted}")),
    }
}

fn join(pod: &PodNamespaces) -> Result<()> {
    let all = [
        (&pod.net, LinkNameSpaceType::Network, "network"),
        (
            &pod.ipc,
            LinkNameSpaceType::InterProcessCommunication,
            "ipc",
        ),
        (&pod.uts, LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
    ];
    for (fd, kind, name) in all {
        if let Some(fd) = fd {
            move_into_link_name_space(fd.as_fd(), Some(kind))
                .during(|| format!("join the pod's {name} namespace"))?;
        }
    }
    Ok(())
}

fn limit_resources() -> Result<()> {
    let limits = [
        (Resource::Nofile, 1024),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    for (resource, value) in limits {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both).during(|| format!("limit {resource:?} to {value}"))?;
    }
    Ok(())
}

/// Installs a ready filter on every thread of this process, with `flags` of seccomp(2) beside.
///
/// Errors: the descriptor holds no filter, or seccomp(2) refused it.
pub fn install(filter: BorrowedFd<'_>, flags: u32) -> Result<()> {
    seccomp::install(filter, flags)
}

/// Leaves shared namespaces for new ones; `whose` is named if the kernel refuses.
fn unshare(apart: rustix::thread::UnshareFlags, whose: &str) -> Result<()> {
    sys::namespaces::unshare(apart).during(|| format!("unshare the {whose} namespace"))
}

/// The compiler's jail: no network, an empty read-only root, nobody, no capabilities, a narrow seccomp list.
///
/// Errors: the first step that failed.
pub fn jail_compiler() -> Result<()> {
    use rustix::thread::UnshareFlags;
    let apart =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    own_session_keyring()?;
    unshare(apart, "compiler's")?;
    sys::empty::replace_root().during(|| "enter an empty root".into())?;
    sys::ids::keep_capabilities_over_id_change()
        .during(|| "keep capabilities until they are dropped".into())?;
    sys::ids::become_user(identity::NOBODY, identity::NOBODY, &[])
        .during(|| "become nobody".into())?;
    sys::ids::drop_capabilities().during(|| "drop all capabilities".into())?;
    seal()?;
    landlock::confine_to_nothing()?;
    seccomp::install_now(&seccomp::compiler_filter()?, 0)
}
