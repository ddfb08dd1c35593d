//! A process that the demo starts: in a process group of its own, logging to a file, ended by SIGTERM.
//!
//! Called by: `registry` and the demo itself, for the daemon. Invariant: Ctrl-C on the terminal reaches only the demo,
//! so that it can end the others in order; dropping the value leaves no process in its group.
//! Must not know: what the process does.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::error::Error;

/// Lines of a log that are shown after a failure.
const TAIL_LINES: usize = 12;

/// A running process and its descendants.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both its outputs go to the file `log`. Errors: the file or the program.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Process, Error> {
        let file = File::create(log).map_err(|error| Error::file("create", log, error))?;
        let copy = file
            .try_clone()
            .map_err(|error| Error::file("open", log, error))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .process_group(0)
            .spawn();
        let child = child.map_err(|error| Error::because(format!("start {name}"), error))?;
        Ok(Process {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// The process group: the pid of the process, and the group of all that it forks.
    pub fn group(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Checks that the process runs. Errors: it has ended, with the end of its log.
    pub fn expect_running(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::new(format!(
                "{} ended with {status}; its log ends:\n{}",
                self.name,
                self.log_tail()
            ))),
            Err(error) => Err(Error::because(format!("wait for {}", self.name), error)),
        }
    }

    /// The last lines of the process's output, indented.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Sends SIGTERM and waits for the end. Errors: it does not end in time, or with another status than after SIGTERM.
    pub async fn end(mut self, timeout: Duration) -> Result<(), Error> {
        if let Some(pid) = Pid::from_raw(self.group()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let name = self.name;
        match self.wait(timeout).await? {
            Some(status) if status.success() || status.signal() == Some(Signal::TERM.as_raw()) => {
                Ok(())
            }
            Some(status) => Err(Error::new(format!(
                "after SIGTERM {name} ended with {status}"
            ))),
            None => Err(Error::new(format!(
                "{name} still runs {timeout:?} after SIGTERM"
            ))),
        }
    }

    async fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait();
            let ended =
                ended.map_err(|error| Error::because(format!("wait for {}", self.name), error))?;
            if ended.is_some() || Instant::now() > deadline {
                return Ok(ended);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The kernel does not reuse the group's number while a member lives, nor before the child is waited for.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(group) = Pid::from_raw(self.group())
        {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use crate::test_scratch::Scratch;

    #[tokio::test]
    async fn a_process_that_ended_by_itself_is_named_with_its_last_output() {
        let scratch = Scratch::new("demo-ended");
        let log = scratch.0.join("log");
        let mut command = Command::new("/bin/sh");
        let mut process =
            Process::start("sh", command.args(["-c", "echo why; exit 3"]), &log).unwrap();
        process.wait(Duration::from_secs(60)).await.unwrap();
        let error = process.expect_running().unwrap_err().to_string();
        assert!(
            error.contains("sh ended with exit status: 3") && error.contains("why"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_reported_and_killed() {
        let scratch = Scratch::new("demo-deaf");
        let log = scratch.0.join("log");
        let mut command = Command::new("/bin/sh");
        let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
        let process = Process::start("sh", command.args(["-c", script]), &log).unwrap();
        while !std::fs::read_to_string(&log).unwrap().contains("up") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let group = process.group();
        let error = process.end(Duration::from_millis(100)).await.unwrap_err();
        assert!(
            error.to_string().contains("still runs 100ms after SIGTERM"),
            "{error}"
        );
        assert!(!Path::new(&format!("/proc/{group}")).exists());
    }
}
