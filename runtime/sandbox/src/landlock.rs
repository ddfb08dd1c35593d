//! The wall of Landlock around a Wasm guest: its own files, its TCP ports, nobody else's sockets and signals.
//!
//! Called by a guest, and by each exec into one, when everything else of its jail stands but seccomp; by the compiler's
//! jail; and by `coracle check`, for what this kernel's version gives.
//! Invariants: a kernel without Landlock is passed over, and `coracle check` says so; on a kernel that has it every
//! failure is fatal. A rule is made only for what is a mount of the container's when it is made: a path that the
//! container has turned elsewhere meanwhile gets none.
//! Limit: rules add up from `/` downwards, so a read-only mount inside a writable root is held read-only by its mount
//! flag and by WASI, not by Landlock.
//! Not here: Linux containers, which mount, run set-id programs and make domains of their own.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::rootfs_path;
use coracle_spec::egress::Egress;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{ContainerSpec, Mount, MountKind, WasmKind, WasmNetwork, WasmSpec};
use coracle_sys::landlock::{self, Handled, Ruleset, files, ports, scopes};

/// What reading takes.
const READ: u64 = files::READ_FILE | files::READ_DIRECTORY;
/// What writing takes. A FIFO or a socket that somebody else left in a volume can be renamed; a guest has no call to
/// make one, nor a device.
const WRITE: u64 = files::WRITE_FILE
    | files::TRUNCATE
    | files::REMOVE_FILE
    | files::REMOVE_DIRECTORY
    | files::MAKE_DIRECTORY
    | files::MAKE_FILE
    | files::MAKE_SYMLINK
    | files::MAKE_FIFO
    | files::MAKE_SOCKET
    | files::REFER;
/// What a rule about a single file may hold.
const OF_A_FILE: u64 = files::READ_FILE | files::WRITE_FILE | files::TRUNCATE;

/// The first version that knows TCP ports.
const PORTS: u32 = 4;
/// The first version that knows scopes.
const SCOPES: u32 = 6;

/// The version that this kernel has; `None` if it was built or booted without Landlock.
///
/// Errors: any other answer.
pub fn version() -> Result<Option<u32>> {
    match landlock::version() {
        Ok(version) => Ok(Some(version)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e).during(|| "ask for the version of Landlock".into()),
    }
}

/// What a guest is held to by `version`, for people.
#[must_use]
pub fn restrictions(version: u32) -> Vec<&'static str> {
    let all = [
        (1, "own files"),
        (PORTS, "TCP ports"),
        (SCOPES, "abstract sockets"),
        (SCOPES, "signals"),
    ];
    let known = all.into_iter().filter(|(since, _)| *since <= version);
    known.map(|(_, wall)| wall).collect()
}

/// Holds the calling thread, and all that it makes, to the files and ports of `spec`; `/` is the container's root
/// already. `code` is the compiled component, which has no path in there.
///
/// Errors: the kernel has Landlock and refused a step.
pub fn confine(spec: &ContainerSpec, wasm: &WasmSpec, code: BorrowedFd<'_>) -> Result<()> {
    let root = rootfs_path::open_dir(Path::new("/")).during(|| "open the guest's root".into())?;
    confine_to(&root, spec, wasm, code)
}

fn confine_to(
    root: &OwnedFd,
    spec: &ContainerSpec,
    wasm: &WasmSpec,
    code: BorrowedFd<'_>,
) -> Result<()> {
    let Some(version) = version()? else {
        return Ok(());
    };
    let tcp = TcpPorts::of(wasm);
    let handled = handled(version, &tcp);
    let what = || format!("restrict the guest by Landlock version {version}");
    let ruleset = Ruleset::new(handled).during(what)?;
    allow_files(&ruleset, handled.files, spec, root).during(what)?;
    if wasm.kind == WasmKind::Component && wasm.toolbox.is_none() {
        allow_code(&ruleset, code).during(what)?;
    }
    for port in tcp.connect.iter().flatten() {
        if handled.ports & ports::CONNECT != 0 {
            ruleset.allow_port(*port, ports::CONNECT).during(what)?;
        }
    }
    ruleset.restrict_self().during(what)
}

/// Takes every file, TCP port, foreign abstract socket and foreign process from the calling thread and all that it
/// makes; what is open stays so.
///
/// Errors: the kernel has Landlock and refused a step.
pub fn confine_to_nothing() -> Result<()> {
    let Some(version) = version()? else {
        return Ok(());
    };
    let ruleset = Ruleset::new(handled(version, &TcpPorts::NONE));
    ruleset
        .and_then(Ruleset::restrict_self)
        .during(|| format!("give everything up by Landlock version {version}"))
}

/// The TCP ports of a guest; `None` is every port.
#[derive(Debug, PartialEq, Eq)]
struct TcpPorts {
    bind: Option<Vec<u16>>,
    connect: Option<Vec<u16>>,
}

impl TcpPorts {
    const NONE: Self = Self {
        bind: Some(Vec::new()),
        connect: Some(Vec::new()),
    };

    /// Neither preview 1 nor the toolbox has sockets.
    fn of(wasm: &WasmSpec) -> Self {
        match &wasm.network {
            WasmNetwork::On(egress)
                if wasm.kind == WasmKind::Component && wasm.toolbox.is_none() =>
            {
                Self {
                    bind: None,
                    connect: Egress::tcp_ports(egress),
                }
            }
            WasmNetwork::On(_) | WasmNetwork::Off => Self::NONE,
        }
    }
}

fn handled(version: u32, tcp: &TcpPorts) -> Handled {
    let mut handled = Handled {
        files: files::all(version),
        ..Handled::default()
    };
    if version >= PORTS {
        for (list, right) in [(&tcp.bind, ports::BIND), (&tcp.connect, ports::CONNECT)] {
            if list.is_some() {
                handled.ports |= right;
            }
        }
    }
    if version >= SCOPES {
        handled.scopes = scopes::ABSTRACT_SOCKETS | scopes::SIGNALS;
    }
    handled
}

/// Gives the root back, and the writable mounts of a root that is read-only.
fn allow_files(
    ruleset: &Ruleset,
    known: u64,
    spec: &ContainerSpec,
    root: &OwnedFd,
) -> io::Result<()> {
    let rights = if spec.root.readonly {
        READ
    } else {
        READ | WRITE
    };
    ruleset.allow_beneath(root.as_fd(), rights & known)?;
    if !spec.root.readonly {
        return Ok(());
    }
    for mount in spec.mounts.iter().filter(|mount| is_writable(mount)) {
        let Some((at, is_directory)) = mounted(root, &mount.target)? else {
            continue;
        };
        let rights = match is_directory {
            true => READ | WRITE,
            false => OF_A_FILE,
        };
        ruleset.allow_beneath(at.as_fd(), rights & known)?;
    }
    Ok(())
}

fn is_writable(mount: &Mount) -> bool {
    !mount.readonly && !matches!(mount.kind, MountKind::Image { .. })
}

/// What is mounted at `target`, and whether it is a directory. `None` when nothing is, or this user does not get there.
fn mounted(root: &OwnedFd, target: &str) -> io::Result<Option<(OwnedFd, bool)>> {
    let at = match rootfs_path::inside(root.as_fd(), target) {
        Ok(at) => at,
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EACCES)
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let found = statx(&at, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    if found.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 == 0 {
        return Ok(None);
    }
    let is_directory = rootfs_path::is_dir(&at)?;
    Ok(Some((at, is_directory)))
}

/// Lets the compiled component be opened once more. A file of no mount, as a memfd is, needs no rule.
fn allow_code(ruleset: &Ruleset, code: BorrowedFd<'_>) -> io::Result<()> {
    match ruleset.allow_beneath(code, files::READ_FILE) {
        Err(e) if e.raw_os_error() == Some(libc::EBADFD) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
