//! A process that cannot be confused with another: it is identified by pidfd, host pid and start time together.
//!
//! The daemon holds one for each keeper and container process, made from a received pidfd or from a record.
//! Invariant: signals go through the pidfd, so a reused pid is never signalled.
//! It must not know what the process does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use coracle_spec::error::{Context as _, Result};
use coracle_sys as sys;

/// A process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Process {
    pidfd: Arc<OwnedFd>,
    pid: i32,
    start_time: u64,
}

impl Process {
    /// Wraps a pidfd and reads the host pid from `/proc`.
    ///
    /// Errors: `/proc` cannot be read. A process that is gone already is not an error: its pid is 0 then.
    pub fn from_pidfd(pidfd: OwnedFd) -> Result<Self> {
        let pid = match sys::fork::pid_of(pidfd.as_fd()) {
            Ok(pid) => pid,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => 0,
            Err(e) => return Err(e).during(|| "read the pid behind a pidfd".into()),
        };
        let start_time = start_time(pid).unwrap_or(0);
        Ok(Self {
            pidfd: Arc::new(pidfd),
            pid,
            start_time,
        })
    }

    /// The process of a record; `None` if it is gone or the pid was reused.
    ///
    /// Errors: the node is out of descriptors or memory, so it cannot be checked.
    pub fn open(pid: i32, recorded_start: u64) -> Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid).filter(|_| pid > 0) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e).during(|| format!("open process {pid}")),
        };
        // Read after the pidfd was opened: if the times agree now, the pidfd is of that process.
        match read_stat(pid) {
            Ok(Some(stat)) if start_in(&stat) == Some(recorded_start) => {}
            Ok(_) => return Ok(None),
            Err(e) => return Err(e).during(|| format!("read the start time of process {pid}")),
        }
        Ok(Some(Self {
            pidfd: Arc::new(pidfd),
            pid,
            start_time: recorded_start,
        }))
    }

    /// The pid in the daemon's pid namespace; 0 if the process was gone before its pid was read.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Sends `signal`; `false` if the process is gone already.
    ///
    /// Errors: the number is not a signal, or the kernel refuses (EPERM).
    pub fn signal(&self, signal: i32) -> Result<bool> {
        let sent = if (1..=64).contains(&signal) {
            // rustix has names only for the classic signals; real-time ones are sent by number.
            match Signal::from_named_raw(signal) {
                Some(named) => pidfd_send_signal(&*self.pidfd, named).map_err(io::Error::from),
                None => sys::signals::send_raw(self.pidfd.as_fd(), signal),
            }
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        };
        match sent {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(e) => Err(e).during(|| format!("send signal {signal} to process {}", self.pid)),
        }
    }

    /// As [`Process::signal`], and says that the process will be killed after `grace`. For container processes that run
    /// WebAssembly.
    pub fn signal_with_grace(&self, signal: i32, grace: Duration) -> Result<bool> {
        match sys::signals::send_with_grace(self.pidfd.as_fd(), signal, grace) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(e) => Err(e).during(|| format!("send signal {signal} to process {}", self.pid)),
        }
    }

    /// Whether the process catches or blocks `signal`, so that it would see one sent now. `None` if it is gone.
    pub fn handles_signal(&self, signal: i32) -> Option<bool> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        if start_time(self.pid) != Some(self.start_time) {
            return None;
        }
        let bit = 1_u64.checked_shl(u32::try_from(signal - 1).ok()?)?;
        let holds = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(u64::from_str_radix(line.trim(), 16).ok()? & bit != 0)
        };
        Some(holds("SigCgt:")? || holds("SigBlk:")?)
    }

    /// Whether the process has not ended.
    pub fn is_alive(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &*self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(n) if n > 0)
    }

    /// Waits until the process has ended, whether it was reaped or not.
    pub async fn ended(&self) {
        let own = Arc::clone(&self.pidfd);
        #[allow(
            unsafe_code,
            reason = "tokio wants the descriptor's constancy promised"
        )]
        // SAFETY: the Arc keeps the descriptor open, under the same number, until the registration is dropped.
        let waiting = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        if let Ok(fd) = waiting {
            let readiness = fd.ready(Interest::READABLE).await;
            if readiness.is_ok() && !self.is_alive() {
                return;
            }
        }
        // Out of descriptors, or a spurious wake-up: poll at intervals instead.
        while self.is_alive() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The exit code as in CRI (128 + signal for a signal), if the kernel still has it: from `/proc` while the process
    /// is a zombie, else from `PIDFD_GET_INFO` (Linux 6.15).
    pub fn exit_status(&self) -> Option<i32> {
        let status = zombie_status(self.pid, self.start_time)
            .or_else(|| sys::signals::reaped_status(self.pidfd.as_raw_fd()))?;
        let signal = status & 0x7f;
        Some(if signal == 0 {
            (status >> 8) & 0xff
        } else {
            128 + signal
        })
    }
}

fn stat_fields(pid: i32) -> Option<Vec<String>> {
    fields_of(&read_stat(pid).ok()??)
}

fn fields_of(stat: &str) -> Option<Vec<String>> {
    // The name in parentheses may hold anything, so fields are counted after the last parenthesis. Index 0 is field 3.
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_ascii_whitespace().map(str::to_owned).collect())
}

/// `/proc/PID/stat`; `None` if the process is gone. Errors: descriptors or memory have run out.
fn read_stat(pid: i32) -> io::Result<Option<String>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

fn start_time(pid: i32) -> Option<u64> {
    start_in(&read_stat(pid).ok()??)
}

fn start_in(stat: &str) -> Option<u64> {
    fields_of(stat)?.get(19)?.parse().ok()
}

fn zombie_status(pid: i32, started: u64) -> Option<i32> {
    let fields = stat_fields(pid)?;
    if fields.first()? != "Z" || fields.get(19)?.parse() != Ok(started) {
        return None;
    }
    fields.get(49)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_is_honoured_only_with_its_start_time() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert!(Process::open(pid, started + 1).unwrap().is_none());
        let process = Process::open(pid, started).unwrap().unwrap();
        assert!(process.is_alive());
        assert!(process.signal(9).unwrap());
        process.ended().await;
        assert_eq!(
            process.exit_status(),
            Some(137),
            "a zombie tells its status"
        );
        child.wait().unwrap();
        assert!(!process.signal(15).unwrap());
        assert!(Process::open(pid, started).unwrap().is_none());
    }
}
