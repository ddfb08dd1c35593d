//! The keeper: one small process per pod. It is parent and reaper of the pod's container processes, writes their logs,
//! and records their exits.
//!
//! The spawner forks it as pid 1 of a pod-level pid namespace: if it is killed, exactly its pod ends. It outlives the
//! daemon, which finds it again by record, pidfd and control socket. [`process`] is the keeper process; the
//! daemon's side is in coracle-control.
//!
//! ```text
//! daemon --control socket--> keeper --fork--> container process   (spec by memfd, which the keeper does not read)
//!                              |  one log thread per container <---- stdout, stderr pipes
//!                              +- exit record on disk, then event to the daemon
//! ```
//! Invariant: the keeper never blocks on a container, a log or the daemon.
//! It must not know about CRI, images or the daemon's records.

mod container_process;
mod containers;
mod execs;
mod log;
mod pid;
pub mod process;
mod reports;
mod tokens;

pub use container_process::main as container_main;
pub(crate) use log::write::{count_for, count_in};

/// A process that is about to execute a program holds copies of all that this one has open. Tests which make processes, and
/// those which such copies would mislead, are one at a time.
#[cfg(test)]
mod forking {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static FORKING: Mutex<()> = Mutex::new(());

    pub(super) fn held() -> MutexGuard<'static, ()> {
        FORKING.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
