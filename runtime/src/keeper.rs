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
mod exits;
mod guest;
mod log;
pub mod process;
mod table;

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Context as _, Result};
use crate::id::ContainerId;
use crate::spec::Exit;

pub use client::{Greeted, Greeting, Keeper, KeeperEvent, StartOrder, Started};
pub use guest::main as guest_main;

/// Makes a keeper's control socket at `path` (0600), replacing one that was left behind.
///
/// Errors: the directory is missing or the path too long for a socket address (107 bytes).
pub fn bind_control(path: &Path) -> Result<OwnedFd> {
    let what = || format!("make control socket {}", path.display());
    let _ = std::fs::remove_file(path);
    let listener = std::os::unix::net::UnixListener::bind(path).during(what)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .during(what)?;
    listener.set_nonblocking(true).during(what)?;
    Ok(listener.into())
}

/// Exit records that keepers left in `dir`. Errors: the directory cannot be listed; absent is empty.
pub fn read_exits(dir: &Path) -> Result<Vec<(ContainerId, Exit)>> {
    exits::read_all(dir)
}

/// The exit record of one container, if there is a whole one.
pub fn read_exit(dir: &Path, container: &ContainerId) -> Option<Exit> {
    exits::read(dir, container)
}

/// Removes the exit record of a container; absent is fine.
pub fn remove_exit(dir: &Path, container: &ContainerId) {
    exits::remove(dir, container);
}
