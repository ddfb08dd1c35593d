//! Short-lived jailed processes that parse untrusted bytes: bounds their number and starts them.
//!
//! Called in the daemon by the compile cache and for unpackers. Each helper is our own executable, with a lifeline as
//! its standard input and its descriptors from 3 on.
//! Invariants: all helpers of the node share one [`Permits`]; a kind of them never has all processes, if there are several;
//! waiters of one kind are served in order and can be cancelled; a helper whose handle is dropped is killed.
//! It must not know about jails, or what a helper does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use coracle_spec::error::{Error, Kind, Result};
use coracle_sys as sys;

/// The unit in which memory is counted, in bytes.
const UNIT: u64 = 1 << 20;
/// Most bytes of a helper's standard error that are read.
const MAX_ERROR_BYTES: u64 = 1 << 10;
/// How long to wait for a dead helper's standard error, which something else may hold open.
const ERROR_TIMEOUT: Duration = Duration::from_millis(200);

/// Bounds the number and memory of the node's helpers. Clones share one pool.
#[derive(Clone, Debug)]
pub struct Permits {
    /// Of the kind.
    kind: Arc<Semaphore>,
    processes: Arc<Semaphore>,
    count: usize,
    memory: Arc<Semaphore>,
    memory_units: u32,
}

/// The right to run one helper; dropping returns it.
#[derive(Debug)]
pub struct Permit {
    _memory: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
    _kind: OwnedSemaphorePermit,
}

impl Permits {
    /// A pool for `processes` helpers with `memory_bytes` of address space together, at least one process and one unit.
    pub fn new(processes: usize, memory_bytes: u64) -> Self {
        let memory_units = u32::try_from(memory_bytes / UNIT).unwrap_or(u32::MAX >> 4);
        let memory_units = memory_units.clamp(1, u32::MAX >> 4);
        let count = processes.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            kind: Arc::new(Semaphore::new(count)),
            processes: Arc::new(Semaphore::new(count)),
            count,
            memory: Arc::new(Semaphore::new(memory_units as usize)),
            memory_units,
        }
    }

    /// The same pool for one kind of helpers: they have all but one of the processes, so that other kinds need not wait
    /// for their end.
    pub fn of_a_kind(&self) -> Self {
        Self {
            kind: Arc::new(Semaphore::new(self.count.saturating_sub(1).max(1))),
            ..self.clone()
        }
    }

    /// Waits until a helper with `memory_bytes` of address space may run. A helper larger than the pool waits for all
    /// of it.
    ///
    /// Errors: none in a running daemon.
    pub async fn take(&self, memory_bytes: u64) -> Result<Permit> {
        let closed = |e| Error::with(Kind::Bug, "wait for a permit for a helper process", e);
        let units = u32::try_from(memory_bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.memory_units);
        let kind = Arc::clone(&self.kind).acquire_owned();
        let kind = kind.await.map_err(closed)?;
        // Everybody takes memory first, so nobody holds a process slot while waiting for memory.
        let memory = Arc::clone(&self.memory).acquire_many_owned(units);
        let memory = memory.await.map_err(closed)?;
        let process = Arc::clone(&self.processes).acquire_owned();
        Ok(Permit {
            _memory: memory,
            _process: process.await.map_err(closed)?,
            _kind: kind,
        })
    }
}

/// A running helper with its lifeline; dropping kills it.
pub struct Helper {
    /// The process.
    pub child: tokio::process::Child,
    _lifeline: Option<tokio::process::ChildStdin>,
}

impl Helper {
    /// The first line that the helper, which has ended, wrote to its standard error, with a colon before it; empty if
    /// there is none. It may have read untrusted bytes by then: the line is bounded, and control characters are
    /// escaped.
    pub async fn error_line(&mut self) -> String {
        let Some(stream) = self.child.stderr.take() else {
            return String::new();
        };
        let mut bytes = Vec::new();
        let mut bounded = stream.take(MAX_ERROR_BYTES);
        let _ = tokio::time::timeout(ERROR_TIMEOUT, bounded.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes);
        match text.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => format!(": {}", line.trim().escape_debug()),
            None => String::new(),
        }
    }
}

/// Starts `exe` with `arguments`, with `descriptors` as 3, 4 and so on, and with standard output `stdout`.
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
        .stderr(Stdio::piped());
    sys::command::give(&mut command, descriptors);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn()?;
    let lifeline = child.stdin.take();
    Ok(Helper {
        child,
        _lifeline: lifeline,
    })
}

/// Starts a thread that exits this process when the daemon, which holds the other end of its standard input, is gone.
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
    async fn a_helper_that_fails_says_why_in_one_bounded_line() {
        let error_of = async |script: &str| {
            let arguments = ["-c".to_owned(), script.to_owned()];
            let exe = Path::new("/bin/sh");
            let mut helper = start(exe, &arguments, Vec::new(), Stdio::null()).unwrap();
            helper.child.wait().await.unwrap();
            helper.error_line().await
        };
        assert_eq!(error_of("exit 1").await, "");
        assert_eq!(
            error_of("echo >&2; echo no jail >&2; echo more >&2; exit 1").await,
            ": no jail"
        );
        assert_eq!(error_of(r"printf 'a\033[2Jb' >&2").await, r": a\u{1b}[2Jb");
        let endless = error_of("head -c 9000 /dev/zero | tr '\\0' x >&2").await;
        assert_eq!(endless.len(), 2 + 1024);
        let held = error_of("echo held >&2; sleep 2 & exit 1").await;
        assert_eq!(held, ": held");
    }

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

    #[tokio::test]
    async fn one_kind_never_has_all_processes() {
        let permits = Permits::new(2, 8 * UNIT);
        let (unpackers, compilers) = (permits.of_a_kind(), permits.of_a_kind());
        let first = unpackers.take(UNIT).await.unwrap();
        let mut second = Box::pin(unpackers.take(8 * UNIT));
        assert!(futures(&mut second).await.is_none(), "no process is left");
        // Nor does a waiter of it keep others from the memory.
        let compiler = futures(&mut Box::pin(compilers.take(UNIT))).await;
        drop((compiler.expect("waits for unpackers"), first));
        second.await.unwrap();
        let one = Permits::new(1, UNIT).of_a_kind();
        assert!(futures(&mut Box::pin(one.take(UNIT))).await.is_some());
    }

    /// The result of a future if it is ready within a short time.
    async fn futures<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        tokio::time::timeout(std::time::Duration::from_millis(20), future)
            .await
            .ok()
    }
}
