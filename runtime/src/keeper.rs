//! The keeper: one small process a pod, parent and reaper of its containers, keeper of their logs and exits.
//!
//! Forked by the spawner as pid 1 of a pod-level pid namespace, so that whatever kills it ends exactly its pod. It
//! outlives the daemon, which finds it again by record, pidfd and this module's control socket. [`process`] is the
//! keeper itself, [`Keeper`] the daemon's half.
//!
//! ```text
//! daemon --control socket--> keeper --fork--> guest          (spec by memfd, unread on the way)
//!                              |  log thread a container <---- stdout, stderr pipes
//!                              +- exit record on disk, then event to the daemon
//! ```
//! Invariant: the keeper never blocks on a container, a log or the daemon.
//! Not here: kubelet, images, the daemon's records.

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

/// Fuzz target: a record counts only if its checksum is right; what is behind one is an exit or nothing. The checksum
/// of the second half of the inputs is made right first.
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

/// Makes a keeper's control socket at `path` (0600), replacing one that was left behind.
///
/// Errors: the directory is missing, or it is not ours to write.
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

/// A name for the socket `path` that fits a socket address (107 bytes) however deep the run directory lies: by way of
/// the open directory, which must be held while the name is used.
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

/// The exit record of one container that its keeper left in `dir`, if there is a whole one.
/// Errors: one is there and cannot be read, or is of a format that this build does not know.
pub fn read_exit(dir: &Path, container: &ContainerId) -> Result<Option<Exit>> {
    exits::read(dir, container)
}

/// Removes the exit record of a container; absent is fine.
pub fn remove_exit(dir: &Path, container: &ContainerId) {
    exits::remove(dir, container);
}
