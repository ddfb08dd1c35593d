//! Short-lived jailed processes that parse untrusted bytes: starts them.
//!
//! Called in the daemon by the compile cache and for unpackers, with a permit ([`permits`]). Each helper is our own executable,
//! with a lifeline as its standard input and its descriptors from 3 on.
//! Invariants: a helper whose handle is dropped is killed; the kernel takes a helper's memory before that of any pod.
//! It must not know about jails, or what a helper does.

mod permits;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use coracle_spec::error::Result;
use coracle_sys as sys;

pub use permits::{Permit, Permits};

/// The highest: what strangers' bytes make a helper hold goes first when the node has no memory left.
const OOM_SCORE_ADJ: i32 = 1000;
/// Most bytes of a helper's standard error that are read.
const MAX_ERROR_BYTES: u64 = 1 << 10;
/// How long to wait for a dead helper's standard error, which something else may hold open.
const ERROR_TIMEOUT: Duration = Duration::from_millis(200);

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

/// Has the kernel choose this helper first when the node runs out of memory. It has the daemon's own score, which spares
/// it, and is for what nobody may take down. Errors: procfs refuses.
pub fn offer_to_oom_killer() -> Result<()> {
    super::set_oom_score(OOM_SCORE_ADJ)
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
}
