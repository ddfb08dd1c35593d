//! Kills plugins that a killed daemon left running during an ADD, before their pods are detached.
//!
//! Called by: [`super::Cni::open`], once. Otherwise such a plugin could take an address after DEL has released it.
//! Invariant: only processes whose environment has a pod of this daemon as `CNI_CONTAINERID` are killed, each by a
//! pidfd, so that a reused pid is never signalled.
//! Not here: which pods those are.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most bytes of an environment that are read.
const MAX_ENVIRONMENT: u64 = 64 << 10;
/// How long all killed processes together may take to end.
const TIMEOUT: Duration = Duration::from_secs(2);
const KEY: &[u8] = b"CNI_CONTAINERID=";

/// Kills the plugins of `pods` and waits for their end; returns how many processes were killed.
pub fn kill(pods: &HashSet<String>) -> usize {
    if pods.is_empty() {
        return 0;
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut ended = 0;
    // Repeated, because a plugin may have started another process meanwhile.
    loop {
        let found = processes(pods);
        if found.is_empty() || Instant::now() > deadline {
            return ended;
        }
        for process in &found {
            ended += usize::from(pidfd_send_signal(process, Signal::KILL).is_ok());
        }
        for process in &found {
            wait(process, deadline);
        }
    }
}

fn processes(pods: &HashSet<String>) -> Vec<OwnedFd> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the pidfd was opened: if the process ended in between, the signal reaches no one.
        works_for(pid, pods).then_some(process)
    })
    .collect()
}

fn works_for(pid: i32, pods: &HashSet<String>) -> bool {
    let mut environment = Vec::new();
    let file = File::open(format!("/proc/{pid}/environ"));
    let read = file.and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment));
    if read.is_err() {
        return false;
    }
    let mut variables = environment.split(|byte| *byte == 0);
    let named = variables.find_map(|variable| variable.strip_prefix(KEY));
    named
        .and_then(|pod| std::str::from_utf8(pod).ok())
        .is_some_and(|pod| pods.contains(pod))
}

fn wait(process: &OwnedFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    // The result does not matter: the next round lists the processes that are left.
    let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left));
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_plugins_of_the_given_pods_are_killed() {
        let sleeper = |pod: &str| {
            let mut command = Command::new("sleep");
            command
                .arg("60")
                .env("CNI_CONTAINERID", pod)
                .spawn()
                .unwrap()
        };
        let (mine, other) = (format!("mine-{}", std::process::id()), "other");
        let mut left = sleeper(&mine);
        let mut unharmed = sleeper(other);
        assert_eq!(kill(&HashSet::new()), 0);
        assert_eq!(kill(&HashSet::from([mine])), 1);
        assert!(!left.wait().unwrap().success());
        assert!(unharmed.try_wait().unwrap().is_none());
        unharmed.kill().unwrap();
        unharmed.wait().unwrap();
    }
}
