//! Short-lived jailed processes that handle foreign bytes: how many there may be, and how one starts.
//!
//! Called by the compile cache and by the starter of unpackers, in the daemon. Each helper is our own executable again,
//! with a lifeline as its standard input and its descriptors from 3 on.
//! Invariants: all helpers of the node share one [`Permits`]; whoever waits for one is served in order and may leave at
//! any time; a helper whose handle is dropped is killed.
//! Not here: jails, what helpers do.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use coracle_spec::error::{Error, Kind, Result};
use coracle_sys as sys;

/// Memory is counted in units of this. Bytes.
const UNIT: u64 = 1 << 20;

/// How many helpers the node runs, and with how much memory. Clones share one pool.
#[derive(Clone, Debug)]
pub struct Permits {
    processes: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    memory_units: u32,
}

/// The right to run one helper, given back on drop.
#[derive(Debug)]
pub struct Permit {
    _memory: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
}

impl Permits {
    /// A pool of `processes` helpers that have `memory_bytes` of address space together; at least one of each.
    pub fn new(processes: usize, memory_bytes: u64) -> Self {
        let memory_units = u32::try_from(memory_bytes / UNIT).unwrap_or(u32::MAX >> 4);
        let memory_units = memory_units.clamp(1, u32::MAX >> 4);
        Self {
            processes: Arc::new(Semaphore::new(processes.clamp(1, Semaphore::MAX_PERMITS))),
            memory: Arc::new(Semaphore::new(memory_units as usize)),
            memory_units,
        }
    }

    /// Waits until a helper with `memory_bytes` of address space may run. One that wants more than there is waits for
    /// all of it.
    ///
    /// Errors: none in a running daemon.
    pub async fn take(&self, memory_bytes: u64) -> Result<Permit> {
        let closed = |e| Error::with(Kind::Bug, "wait for the turn of a helper process", e);
        let units = u32::try_from(memory_bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.memory_units);
        // Memory first, for everybody: whoever has a place never waits for memory.
        let memory = Arc::clone(&self.memory).acquire_many_owned(units);
        let memory = memory.await.map_err(closed)?;
        let process = Arc::clone(&self.processes).acquire_owned();
        Ok(Permit {
            _memory: memory,
            _process: process.await.map_err(closed)?,
        })
    }
}

/// A helper with its lifeline: it ends when this is dropped.
pub struct Helper {
    /// The process.
    pub child: tokio::process::Child,
    _lifeline: Option<tokio::process::ChildStdin>,
}

/// Starts `exe` with `arguments` and `descriptors` as 3, 4 and so on; its standard output goes to `stdout`.
///
/// Errors: fork or exec failed.
pub fn start(
    exe: &Path,
    arguments: &[String],
    descriptors: Vec<OwnedFd>,
    stdout: Stdio,
) -> std::io::Result<Helper> {
    use std::os::unix::process::CommandExt as _;
    let mut command = std::process::Command::new(exe);
    command.arg0("coracle").args(arguments);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::null());
    sys::command::give(&mut command, descriptors);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn()?;
    let lifeline = child.stdin.take();
    Ok(Helper {
        child,
        _lifeline: lifeline,
    })
}

/// Ends this process when the daemon does, which holds the other end of its standard input. The thread only reads.
pub fn watch_lifeline() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(
            rustix::io::read(sys::standard(0), &mut byte),
            Ok(1) | Err(rustix::io::Errno::INTR)
        ) {}
        sys::fork::leave(1);
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_bound_number_and_memory_and_are_given_in_order() {
        let permits = Permits::new(3, 4 * UNIT);
        let first = permits.take(3 * UNIT).await.unwrap();
        let mut large = Box::pin(permits.take(2 * UNIT));
        assert!(futures(&mut large).await.is_none(), "no memory is left");
        let mut small = Box::pin(permits.take(UNIT));
        assert!(futures(&mut small).await.is_none(), "it overtook");
        drop(large);
        let _small = small.await.unwrap();
        drop(first);
        let _two = [
            permits.take(1).await.unwrap(),
            permits.take(1).await.unwrap(),
        ];
        let mut fourth = Box::pin(permits.take(1));
        assert!(futures(&mut fourth).await.is_none(), "a fourth process");
        let all = Permits::new(1, UNIT).take(100 * UNIT).await;
        assert!(all.is_ok(), "more than there is means all of it");
    }

    /// What a future gives within a moment.
    async fn futures<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        tokio::time::timeout(std::time::Duration::from_millis(20), future)
            .await
            .ok()
    }
}
