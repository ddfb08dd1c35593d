//! Landlock rules of a Wasm container: only its own files and TCP ports, no sockets of or signals to others.
//!
//! Called by a Wasm container's process and by each exec into it, as the last step of the jail before seccomp; by the
//! compiler's jail; and by `coracle check`, which shows what this kernel's version restricts.
//! Invariants: a kernel without Landlock is accepted, and `coracle check` reports it; on a kernel with Landlock every
//! failure is fatal. A rule is made only for a path that is a mount of the container when the rule is made: a path that
//! the container has redirected meanwhile gets none.
//! Limit: rules are additive from `/` downwards, so a read-only mount inside a writable root is read-only by its mount
//! flag and by WASI, not by Landlock.
//! Linux containers have no Landlock rules: they mount, run set-id programs and make their own domains.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::rootfs_path;
use coracle_spec::egress::Egress;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{ContainerSpec, Mount, MountKind, WasmKind, WasmNetwork, WasmSpec};
use coracle_sys::landlock::{self, Handled, Ruleset, files, ports, scopes};

/// Access rights for reading.
const READ: u64 = files::READ_FILE | files::READ_DIRECTORY;
/// Access rights for writing. The rights to make FIFOs and sockets are for renaming those that others left in a volume:
/// seccomp lets a guest make neither, and no devices.
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
/// Rights that a rule about a single file may have.
const OF_A_FILE: u64 = files::READ_FILE | files::WRITE_FILE | files::TRUNCATE;

/// The first version with TCP ports.
const PORTS: u32 = 4;
/// The first version with scopes.
const SCOPES: u32 = 6;

/// The kernel's Landlock version; `None` if it was built or booted without Landlock.
///
/// Errors: the kernel answers with any other error.
pub fn version() -> Result<Option<u32>> {
    match landlock::version() {
        Ok(version) => Ok(Some(version)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e).during(|| "query the version of Landlock".into()),
    }
}

/// What `version` restricts, as text for users.
#[must_use]
pub fn restrictions(version: u32) -> Vec<&'static str> {
    let all = [
        (1, "own files"),
        (PORTS, "listed TCP ports"),
        (SCOPES, "abstract sockets"),
        (SCOPES, "signals"),
    ];
    let known = all.into_iter().filter(|(since, _)| *since <= version);
    known.map(|(_, wall)| wall).collect()
}

/// Restricts the calling thread and its children to the files and ports of `spec`. `/` is the container's root already.
/// `code` is the compiled component, which has no path in it.
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

/// Denies the calling thread and its children every file, TCP port, abstract socket and process of others. Open
/// descriptors stay usable.
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

/// The TCP ports that a guest may use; `None`: every port.
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

    fn of(wasm: &WasmSpec) -> Self {
        match &wasm.network {
            WasmNetwork::On(egress) if wasm.has_sockets() => Self {
                bind: None,
                connect: Egress::tcp_ports(egress),
            },
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

/// Allows the root, and the writable mounts inside a read-only root.
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

/// What is mounted at `target`, and whether it is a directory. `None` if nothing is, or this user cannot reach it.
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

/// Allows opening the compiled component again. A file without a mount, such as a memfd, needs no rule.
fn allow_code(ruleset: &Ruleset, code: BorrowedFd<'_>) -> io::Result<()> {
    match ruleset.allow_beneath(code, files::READ_FILE) {
        Err(e) if e.raw_os_error() == Some(libc::EBADFD) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
