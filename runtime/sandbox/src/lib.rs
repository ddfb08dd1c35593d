//! Builds the jail of a container process.
//!
//! A container process calls it right after its fork, while it has one thread, in the node's mount namespace and as
//! root. Each step is a function; each failure is fatal and names the step. The order for a Wasm container:
//!
//! ```text
//! undumpable since the fork -> cgroups -> net/ipc/uts -> keyring -> node's mounts left -> root and volumes -> pivot
//!         -> rlimits -> identity -> capabilities -> no_new_privs -> Landlock -> seccomp
//!                                                              (then a new thread loads the code)
//! ```
//! Invariant: when [`build`] returns, the process is not host root, has no capabilities, and sees only its own root and
//! its volumes; after [`install`], a system call outside the allow-list kills it.
//! It must not know what runs in the jail, or about logs and CRI.

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

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_spec::{ContainerSpec, ResourceLimit, Workload};
use coracle_sys as sys;

pub use seccomp::Filters;

/// Namespaces of the pod that a container process joins; `None` is the node's own.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    /// Network.
    pub net: Option<OwnedFd>,
    /// System V IPC and POSIX queues.
    pub ipc: Option<OwnedFd>,
    /// Host name.
    pub uts: Option<OwnedFd>,
    /// A user namespace with the pod's usual id map; a container with other ids makes its own.
    pub ids: Option<OwnedFd>,
    /// The pod's own user namespace, in which its Linux containers run.
    pub user: Option<OwnedFd>,
    /// The pod's shared memory, a mounted tmpfs.
    pub shm: Option<OwnedFd>,
    /// A process whose pid namespace a Linux container joins; `None` if it has its own.
    pub pids: Option<OwnedFd>,
    /// A mount namespace with an empty root, of which a container's own begins as a copy. An exec has none.
    pub empty: Option<OwnedFd>,
}

impl PodNamespaces {
    /// The empty mount namespace. Errors: there is none, which is a bug of the keeper.
    pub fn empty(&self) -> Result<BorrowedFd<'_>> {
        let own = self.empty.as_ref().map(AsFd::as_fd);
        own.ok_or_else(|| {
            Error::new(
                Kind::Bug,
                "a container came without an empty mount namespace",
            )
        })
    }
}

/// Builds the jail of `spec` around the calling process, except Landlock and seccomp.
///
/// The process was forked into a new pid namespace. Errors: the first step that failed.
pub fn build(spec: &ContainerSpec, pod: &PodNamespaces) -> Result<()> {
    enter_cgroups(spec)?;
    set_oom_score(spec.oom_score_adj)?;
    failpoint::hit("guest.jail").during(|| "build the jail".into())?;
    join(pod)?;
    within(spec, || {
        let mapped = identity::host_identity(spec, pod.ids.as_ref())?;
        root::build(spec, mapped, pod)
    })
}

/// Enters the jail of `spec` that another process has built and is in as host `user`, by `join`, except Landlock and
/// seccomp. The caller is in its cgroups already. Errors: the first step that failed.
pub fn enter(spec: &ContainerSpec, user: u32, join: impl FnOnce() -> Result<()>) -> Result<()> {
    within(spec, || {
        let host = identity::of_built(spec, user)?;
        join()?;
        // The user changes before the capabilities are dropped, as when a root is built.
        sys::ids::keep_capabilities_over_id_change()
            .during(|| "keep capabilities until they are dropped".into())?;
        Ok(host)
    })
}

/// Enters the root by `arrive`, which says which identity works, then sets it and limits.
fn within(
    spec: &ContainerSpec,
    arrive: impl FnOnce() -> Result<identity::HostIdentity>,
) -> Result<()> {
    own_session_keyring()?;
    let host = arrive()?;
    limit_resources(spec)?;
    sys::ids::become_user(host.uid, host.gid, &host.groups)
        .during(|| format!("become host user {}:{}", host.uid, host.gid))?;
    sys::ids::drop_capabilities().during(|| "drop all capabilities".into())?;
    seal()
}

/// Joins a new session keyring. Called as host root and before the filesystem ids are set.
///
/// Errors: any error of the kernel. All of them are fatal to the container.
pub fn own_session_keyring() -> Result<()> {
    sys::keyring::join_own().during(|| "join a session keyring of its own".into())
}

/// Sets no_new_privs and makes the process undumpable, so that neither execve nor ptrace weakens the jail.
fn seal() -> Result<()> {
    rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".into())?;
    sys::dump::forbid().during(|| "become undumpable".into())
}

/// Enters the cgroups of `spec` that the calling process was not forked into. Errors: the kernel refuses one.
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

/// Sets this process's OOM adjustment. If the node does not allow a lower value than the current one, keeps that.
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

/// Joins the pod's network, ipc and uts namespaces. A process does so before anybody in the pod can see it.
///
/// Errors: the kernel refuses one.
pub fn join(pod: &PodNamespaces) -> Result<()> {
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

/// Most open files of a guest, if the daemon may have as many: enough for a server, few enough for the kernel's memory.
const OPEN_FILES: u64 = 1 << 16;

fn limit_resources(spec: &ContainerSpec) -> Result<()> {
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES);
    let limits = [
        (Resource::Nofile, open_files.min(OPEN_FILES)),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    set_limits(&limits)?;
    match &spec.workload {
        Workload::Wasm(wasm) => wasm.rlimits.iter().try_for_each(lower),
        Workload::Linux(_) => Ok(()),
    }
}

/// Lowers a limit of an instance's process; one above what it has changes nothing.
fn lower(limit: &ResourceLimit) -> Result<()> {
    let resource = match limit.resource {
        libc::RLIMIT_NOFILE => Resource::Nofile,
        libc::RLIMIT_FSIZE => Resource::Fsize,
        // A core: the process never leaves one.
        _ => return Ok(()),
    };
    let ours = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    let both = Rlimit {
        current: finite(limit.soft.min(limit.hard).min(ours)),
        maximum: finite(limit.hard.min(ours)),
    };
    setrlimit(resource, both).during(|| format!("limit {resource:?} to {}", limit.hard))
}

/// Sets soft and hard resource limits of this process. Errors: setrlimit(2) refused one.
pub fn set_limits(limits: &[(Resource, u64)]) -> Result<()> {
    for &(resource, value) in limits {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both).during(|| format!("limit {resource:?} to {value}"))?;
    }
    Ok(())
}

/// Installs a ready filter on every thread of this process, with additional `flags` of seccomp(2).
///
/// Errors: the descriptor holds no filter, or seccomp(2) refused it.
pub fn install(filter: BorrowedFd<'_>, flags: u32) -> Result<()> {
    seccomp::install(filter, flags)
}

/// Unshares namespaces; `whose` appears in the error.
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
    helper::offer_to_oom_killer()?;
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
