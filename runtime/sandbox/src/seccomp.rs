//! Seccomp filters of Wasm containers and of the compiler: allow-lists; any other call kills the process.
//!
//! The daemon builds them once ([`Filters::build`]) and passes them as ready BPF in sealed memfds; a container process
//! only loads them. There are two stages: the first is loaded before the code is mapped, the second after it and
//! forbids new executable mappings. A process that runs no guest but holds the socket of one that sleeps stays in the
//! first stage, which lets it fork and wait; the second stage takes that away again, before any guest runs.
//! Invariant: where a guest runs, no list allows execve, fork, ptrace, mount, bpf, keyctl, or ways to open an absolute
//! path that openat2 below a preopen does not need.
//! Profiles of Linux containers are in [`super::profile`].

mod calls;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

pub(super) use self::calls::CORE;
use self::calls::{ACCEPTED, FILES, FORKS, SOCKETS, STREAMS};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{HttpServer, WasmNetwork, WasmSpec};
use coracle_sys as sys;
use coracle_sys::memfd::{read_all, sealed};

/// Ready filters for Wasm containers; cheap to share.
#[derive(Debug)]
pub struct Filters {
    /// Before code is mapped, for a guest without sockets.
    offline: OwnedFd,
    /// The same for a server whose guest makes none.
    serving: OwnedFd,
    /// The same for a guest with sockets.
    online: OwnedFd,
    /// As `serving` and `online`, for a process that forks the one which serves.
    holding: [OwnedFd; 2],
    /// After code is mapped: no new executable mappings.
    locked: OwnedFd,
    /// The same after one of `holding`: no forks either.
    locked_fork: OwnedFd,
}

impl Filters {
    /// The two stages for `spec`, in the order in which they are loaded.
    pub fn of(&self, spec: &WasmSpec) -> [&OwnedFd; 2] {
        let [serving, online] = &self.holding;
        let may_sleep = spec.serves().is_some_and(HttpServer::may_sleep);
        let first = match &spec.network {
            WasmNetwork::On(_) if may_sleep && spec.has_sockets() => online,
            WasmNetwork::On(_) | WasmNetwork::Off if may_sleep => serving,
            WasmNetwork::On(_) if spec.has_sockets() => &self.online,
            WasmNetwork::Off if spec.serves().is_some() => &self.serving,
            WasmNetwork::On(_) | WasmNetwork::Off => &self.offline,
        };
        let second = if may_sleep {
            &self.locked_fork
        } else {
            &self.locked
        };
        [first, second]
    }

    /// Builds all stages for Wasm guests. Errors: libseccomp refuses (an architecture it does not know).
    pub fn build() -> Result<Self> {
        let seal = |name, bytes: Vec<u8>| {
            sealed(name, &bytes).during(|| format!("seal seccomp filter {name}"))
        };
        Ok(Self {
            offline: seal("seccomp-wasm", guest_filter(Sockets::None, false)?)?,
            serving: seal(
                "seccomp-wasm-serve",
                guest_filter(Sockets::Accepted, false)?,
            )?,
            online: seal("seccomp-wasm-net", guest_filter(Sockets::Own, false)?)?,
            holding: [
                seal("seccomp-wasm-hold", guest_filter(Sockets::Accepted, true)?)?,
                seal("seccomp-wasm-hold-net", guest_filter(Sockets::Own, true)?)?,
            ],
            locked: seal("seccomp-noexec", lock_filter(false)?)?,
            locked_fork: seal("seccomp-noexec-nofork", lock_filter(true)?)?,
        })
    }
}

/// The sockets that a guest's process may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sockets {
    None,
    /// The one that it was born with, and those that this accepts.
    Accepted,
    /// As many as it makes.
    Own,
}

fn broken(cause: libseccomp::error::SeccompError) -> Error {
    Error::with(Kind::Bug, "build a seccomp filter", cause)
}

pub(super) fn allow(filter: &mut ScmpFilterContext, names: &[&str]) -> Result<()> {
    for name in names {
        // A call that this libseccomp or architecture does not have stays denied.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Allow, call).map_err(broken)?;
        }
    }
    Ok(())
}

fn masked(
    filter: &mut ScmpFilterContext,
    name: &str,
    argument: u32,
    mask: u64,
    value: u64,
) -> Result<()> {
    let call = ScmpSyscall::from_name(name).map_err(broken)?;
    let only = ScmpArgCompare::new(argument, ScmpCompareOp::MaskedEqual(mask), value);
    filter
        .add_rule_conditional(ScmpAction::Allow, call, &[only])
        .map_err(broken)?;
    Ok(())
}

/// Allows threads but no new process. A filter cannot see the flags of clone3, so it returns ENOSYS and glibc uses
/// clone.
pub(super) fn threads(filter: &mut ScmpFilterContext) -> Result<()> {
    let clone3 = ScmpSyscall::from_name("clone3").map_err(broken)?;
    filter
        .add_rule(ScmpAction::Errno(libc::ENOSYS), clone3)
        .map_err(broken)?;
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
    masked(filter, "clone", 0, thread, thread)?;
    for name in [libc::PR_SET_NAME, libc::PR_SET_VMA] {
        masked(filter, "prctl", 0, u64::MAX, name as u64)?;
    }
    Ok(())
}

pub(super) fn fresh() -> Result<ScmpFilterContext> {
    ScmpFilterContext::new(ScmpAction::KillProcess).map_err(broken)
}

pub(super) fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    let file = rustix::fs::memfd_create("bpf", rustix::fs::MemfdFlags::CLOEXEC)
        .during(|| "make a memfd".into())?;
    filter.export_bpf(&file).map_err(broken)?;
    read_all(file.as_fd(), 1 << 20).during(|| "read the exported filter".into())
}

/// Allows TCP and UDP over IP and no other sockets, such as raw, netlink or Unix ones.
fn sockets(filter: &mut ScmpFilterContext) -> Result<()> {
    allow(filter, ACCEPTED)?;
    allow(filter, SOCKETS)?;
    let call = ScmpSyscall::from_name("socket").map_err(broken)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            for protocol in [0, protocol] {
                // The kernel reads 32 bits of each argument.
                let int = u64::from(u32::MAX);
                let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
                let is = |argument, mask, value: i32| {
                    let same = ScmpCompareOp::MaskedEqual(mask);
                    ScmpArgCompare::new(argument, same, value as u64)
                };
                let only = [
                    is(0, int, family),
                    is(1, int & !flags, kind),
                    is(2, int, protocol),
                ];
                filter
                    .add_rule_conditional(ScmpAction::Allow, call, &only)
                    .map_err(broken)?;
            }
        }
    }
    Ok(())
}

/// `forks`: also what [`lock_filter`] takes away again.
fn guest_filter(which: Sockets, forks: bool) -> Result<Vec<u8>> {
    let mut filter = fresh()?;
    // As a tree: when it is loaded, the kernel tries it on each system call that there is. An older libseccomp makes a list
    // that means the same.
    let _ = filter.set_ctl_optimize(2);
    allow(&mut filter, CORE)?;
    allow(&mut filter, STREAMS)?;
    allow(&mut filter, FILES)?;
    threads(&mut filter)?;
    match which {
        Sockets::None => {}
        Sockets::Accepted => allow(&mut filter, ACCEPTED)?,
        Sockets::Own => sockets(&mut filter)?,
    }
    // For the event loop's self-pipe. Only stream pairs: a datagram socket could send to anybody who listens on an
    // abstract name in the network namespace.
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let (int, stream) = (u64::from(u32::MAX), libc::SOCK_STREAM as u64);
    let call = ScmpSyscall::from_name("socketpair").map_err(broken)?;
    let only = [
        ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(int), libc::AF_UNIX as u64),
        ScmpArgCompare::new(1, ScmpCompareOp::MaskedEqual(int & !flags), stream),
    ];
    filter
        .add_rule_conditional(ScmpAction::Allow, call, &only)
        .map_err(broken)?;
    // isatty(3) gets an error instead of killing the process.
    let ioctl = ScmpSyscall::from_name("ioctl").map_err(broken)?;
    filter
        .add_rule(ScmpAction::Errno(libc::ENOTTY), ioctl)
        .map_err(broken)?;
    if forks {
        allow(&mut filter, FORKS)?;
        masked(&mut filter, "clone", 0, u64::MAX, sys::fork::PLAIN_FORK)?;
        masked(&mut filter, "prctl", 0, u64::MAX, DEATH_SIGNAL)?;
    }
    // Allowed, so that the second stage can be loaded.
    masked(&mut filter, "seccomp", 0, u64::MAX, 1)?;
    export(&filter)
}

/// The operation of prctl(2) with which a process ends when its parent does.
const DEATH_SIGNAL: u64 = libc::PR_SET_PDEATHSIG as u64;

/// Denies PROT_EXEC, further filters and, with `forks`, what the first stage allowed for forking; the first stage decides
/// on everything else.
fn lock_filter(forks: bool) -> Result<Vec<u8>> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).map_err(broken)?;
    let exec = libc::PROT_EXEC as u64;
    for name in ["mmap", "mprotect", "pkey_mprotect"] {
        let call = ScmpSyscall::from_name(name).map_err(broken)?;
        let with_exec = ScmpArgCompare::new(2, ScmpCompareOp::MaskedEqual(exec), exec);
        filter
            .add_rule_conditional(ScmpAction::KillProcess, call, &[with_exec])
            .map_err(broken)?;
    }
    let mut denied = vec!["seccomp", "chdir", "fchdir"];
    if forks {
        denied.extend(FORKS);
        for (name, mask, value) in [
            // Whatever is no thread.
            ("clone", libc::CLONE_THREAD as u64, 0),
            ("prctl", u64::MAX, DEATH_SIGNAL),
        ] {
            let call = ScmpSyscall::from_name(name).map_err(broken)?;
            let only = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(mask), value);
            filter
                .add_rule_conditional(ScmpAction::KillProcess, call, &[only])
                .map_err(broken)?;
        }
    }
    for name in denied {
        let call = ScmpSyscall::from_name(name).map_err(broken)?;
        filter
            .add_rule(ScmpAction::KillProcess, call)
            .map_err(broken)?;
    }
    export(&filter)
}

/// The compiler's filter: threads, memory, its five descriptors; no files.
pub(super) fn compiler_filter() -> Result<Vec<u8>> {
    let mut filter = fresh()?;
    allow(&mut filter, CORE)?;
    allow(
        &mut filter,
        &[
            "close", "fstat", "pread64", "read", "write", "lseek", "poll", "ppoll",
        ],
    )?;
    threads(&mut filter)?;
    for (name, errno) in [
        ("openat", libc::ENOENT),
        ("newfstatat", libc::ENOENT),
        ("statx", libc::ENOSYS),
        ("readlink", libc::ENOENT),
        ("ioctl", libc::ENOTTY),
        ("fcntl", libc::EINVAL),
        ("readlinkat", libc::ENOENT),
    ] {
        // Libraries probe /sys and /proc for the number of processors and continue on an error.
        let call = ScmpSyscall::from_name(name).map_err(broken)?;
        filter
            .add_rule(ScmpAction::Errno(errno), call)
            .map_err(broken)?;
    }
    export(&filter)
}

/// Installs the filter that `filter` holds on all threads, with additional `flags` of seccomp(2).
pub(super) fn install(filter: BorrowedFd<'_>, flags: u32) -> Result<()> {
    let bytes = read_all(filter, 1 << 20).during(|| "read a seccomp filter".into())?;
    install_now(&bytes, flags)
}

/// Installs a ready filter on all threads of this process.
pub(super) fn install_now(bytes: &[u8], flags: u32) -> Result<()> {
    sys::seccomp::install(bytes, flags)
        .during(|| format!("install a seccomp filter of {} bytes", bytes.len()))
}
