//! Kills plugins that a killed daemon left running during an ADD, before their pods are detached.
//!
//! Called by: [`super::Cni::open`], once. Otherwise such a plugin could take an address after DEL has released it.
//! Invariants: a process is a plugin only if it is in a cgroup that a daemon of ours had, and has a pod of this daemon as
//! `CNI_CONTAINERID` in its environment; others are not even looked at, as reading their environment waits for locks of
//! their memory. Each is killed by a pidfd, so that a reused pid is never signalled. The caller waits for [`LIMIT`] at most.
//! Not here: which pods those are.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most bytes of an environment that are read.
const MAX_ENVIRONMENT: u64 = 64 << 10;
/// How long all killed processes together may take to end.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long the caller waits for all of it.
const LIMIT: Duration = Duration::from_secs(3);
const KEY: &[u8] = b"CNI_CONTAINERID=";

/// Which plugins may be left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Pods whose ADD did not end.
    pub pods: HashSet<String>,
    /// Where plugins are: the cgroups of the daemons that requested it, as in `/proc/PID/cgroup`.
    pub cgroups: HashSet<String>,
}

/// The cgroups of this process in all hierarchies: those of its plugins.
pub fn own_cgroups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Kills the plugins and waits for their end, both within [`LIMIT`]; returns how many processes were killed.
pub fn kill(of: Unfinished) -> usize {
    if of.pods.is_empty() {
        return 0;
    }
    let deadline = Instant::now() + TIMEOUT;
    let (sender, ended) = mpsc::channel();
    // A plugin may hang in the kernel, and whoever reads its environment with it.
    let thread = std::thread::Builder::new().name("cni-orphans".to_owned());
    let spawned = thread.spawn(move || sender.send(kill_until(&of, deadline)));
    let ended = spawned.map(|_| ended.recv_timeout(LIMIT));
    ended.ok().and_then(Result::ok).unwrap_or_else(|| {
        tracing::warn!(
            "network plugins that outlived their daemon may still run: /proc did not answer within {} s",
            LIMIT.as_secs()
        );
        0
    })
}

fn kill_until(of: &Unfinished, deadline: Instant) -> usize {
    let mut ended = 0;
    // Repeated, because a plugin may have started another process meanwhile.
    loop {
        let found = processes(of);
        if found.is_empty() {
            return ended;
        }
        for process in &found {
            ended += usize::from(pidfd_send_signal(process, Signal::KILL).is_ok());
        }
        for process in &found {
            wait(process, deadline);
        }
        // At the end of a round: on a machine that is slow to list processes, those that are there are killed all the same.
        if Instant::now() > deadline {
            return ended;
        }
    }
}

fn processes(of: &Unfinished) -> Vec<OwnedFd> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the pidfd was opened: if the process ended in between, the signal reaches no one.
        (is_in(pid, &of.cgroups) && works_for(pid, &of.pods)).then_some(process)
    })
    .collect()
}

/// Whether a process is in one of these cgroups. Unlike its environment, they are not in its memory.
fn is_in(pid: i32, cgroups: &HashSet<String>) -> bool {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup"));
    own.is_ok_and(|own| cgroups.contains(&own))
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

    fn sleeper(pod: &str) -> std::process::Child {
        let mut command = Command::new("sleep");
        command
            .arg("60")
            .env("CNI_CONTAINERID", pod)
            .spawn()
            .unwrap()
    }

    fn unfinished(pod: &str, cgroups: &str) -> Unfinished {
        Unfinished {
            pods: HashSet::from([pod.to_owned()]),
            cgroups: HashSet::from([cgroups.to_owned()]),
        }
    }

    #[test]
    fn only_plugins_of_the_given_pods_are_killed() {
        let mine = format!("mine-{}", std::process::id());
        let mut left = sleeper(&mine);
        let mut unharmed = sleeper("other");
        assert_eq!(kill(Unfinished::default()), 0);
        let patient = Instant::now() + Duration::from_secs(60);
        assert_eq!(kill_until(&unfinished(&mine, &own_cgroups()), patient), 1);
        assert!(!left.wait().unwrap().success());
        assert!(unharmed.try_wait().unwrap().is_none());
        unharmed.kill().unwrap();
        unharmed.wait().unwrap();
    }

    #[test]
    fn whoever_is_elsewhere_is_no_plugin_whatever_its_environment_says() {
        let pod = format!("claimed-{}", std::process::id());
        let mut stranger = sleeper(&pod);
        let elsewhere = "0::/system.slice/coracle.service\n";
        assert_eq!(kill(unfinished(&pod, elsewhere)), 0);
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
