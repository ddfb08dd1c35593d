//! The keeper: one small process per pod. It is parent and reaper of the pod's container processes, writes their logs,
//! and records their exits.
//!
//! The spawner forks it as pid 1 of a pod-level pid namespace: if it is killed, exactly its pod ends. It outlives the
//! daemon, which finds it again by record, pidfd and control socket. [`process`] is the keeper process, [`Keeper`] the
//! daemon's side.
//!
//! ```text
//! daemon --control socket--> keeper --fork--> container process   (spec by memfd, which the keeper does not read)
//!                              |  one log thread per container <---- stdout, stderr pipes
//!                              +- exit record on disk, then event to the daemon
//! ```
//! Invariant: the keeper never blocks on a container, a log or the daemon.
//! It must not know about CRI, images or the daemon's records.

mod client;
mod container_process;
mod containers;
mod execs;
mod exits;
mod log;
mod pid;
pub mod process;
mod reports;
mod tokens;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_spec::Exit;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::id::ContainerId;

pub use client::{
    AttachOptions, Attached, Exec, ExecOptions, ExecStreams, Greeting, Keeper, KeeperContainer,
    KeeperEvent, StartOptions, StartPayload, Started,
};
pub use container_process::main as container_main;

/// Fuzz target: an exit record is read only if its checksum is right. For half of the inputs the target fixes the
/// checksum first.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn exit_record(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let sum = |body: &str| {
        use sha2::{Digest as _, Sha256};
        coracle_spec::id::hex(&Sha256::digest(body.as_bytes()))
    };
    if let (Ok(Some(_)), Some((header, body))) = (exits::decode(input), text.split_once('\n')) {
        let body = body.strip_suffix('\n').unwrap_or(body);
        assert!(header.ends_with(&sum(body)), "{header}");
    }
    let whole = format!("coracle-exit 1 {}\n{text}\n", sum(text));
    if let Ok(Some(exit)) = exits::decode(whole.as_bytes()) {
        let written = serde_json::to_string(&exit).expect("an exit is JSON");
        assert_eq!(serde_json::from_str::<Exit>(&written).ok(), Some(exit));
    }
}

/// Makes a keeper's control socket at `path` (0600) and replaces a stale one.
///
/// Errors: the directory is missing or not writable.
pub fn bind_control(path: &Path) -> Result<OwnedFd> {
    let what = || format!("make control socket {}", path.display());
    let _ = std::fs::remove_file(path);
    let (_directory, short) = short(path).during(what)?;
    let listener = std::os::unix::net::UnixListener::bind(short).during(what)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .during(what)?;
    listener.set_nonblocking(true).during(what)?;
    Ok(listener.into())
}

/// A name for the socket `path` that fits a socket address (107 bytes) however long the run directory's path is: it
/// goes through the open directory, which must stay open while the name is used.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags, open};
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let by_number = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    Ok((directory, by_number.join(name)))
}

/// The exit record of one container that its keeper left in `dir`, if there is a complete one.
/// Errors: it exists but cannot be read, or has a format that this build does not know.
pub fn read_exit(dir: &Path, container: &ContainerId) -> Result<Option<Exit>> {
    exits::read(dir, container)
}

/// Removes the exit record of a container, if there is one.
pub fn remove_exit(dir: &Path, container: &ContainerId) {
    exits::remove(dir, container);
}
