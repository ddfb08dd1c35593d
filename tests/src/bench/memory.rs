//! What a runtime costs while its pods are idle: memory and processor time, read from /proc.

use std::collections::BTreeMap;
use std::fs;

use crate::procs;
use crate::scratch::Scratch;

/// What is read at one moment, over all processes of a scratch.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Resident memory of the daemon, KiB.
    pub daemon_rss_kib: u64,
    /// Proportional memory of every other process, KiB.
    pub others_pss_kib: u64,
    /// The machine's MemAvailable, KiB.
    pub available_kib: u64,
    /// Processor time that each thread of the scratch's processes has had, ns, by thread id.
    pub cpu_ns: BTreeMap<i32, u64>,
    /// Processes but for the daemon.
    pub processes: usize,
}

/// Reads everything now.
pub fn read(scratch: &Scratch, daemon: i32) -> Reading {
    let mut reading = Reading {
        available_kib: available_kib(),
        ..Reading::default()
    };
    for process in procs::of_scratch(scratch) {
        reading.cpu_ns.extend(cpu_ns(process.pid));
        if process.pid == daemon {
            reading.daemon_rss_kib = field(&format!("/proc/{daemon}/status"), "VmRSS:");
        } else {
            reading.others_pss_kib += pss_kib_of(&[process.pid]);
            reading.processes += 1;
        }
    }
    reading
}

/// The machine's MemAvailable, KiB.
pub fn available_kib() -> u64 {
    field("/proc/meminfo", "MemAvailable:")
}

/// Proportional memory of these processes together, KiB.
pub fn pss_kib_of(pids: &[i32]) -> u64 {
    let rollup = |pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
    pids.iter().map(rollup).sum()
}

/// Processor time that these processes have had, ns.
pub fn cpu_ns_of(pids: &[i32]) -> u64 {
    pids.iter()
        .flat_map(|pid| cpu_ns(*pid))
        .map(|(_, ns)| ns)
        .sum()
}

/// The first number after `name` in a file of `Name: number kB` lines; 0 when it is not there.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Processor time of each thread of `pid`.
fn cpu_ns(pid: i32) -> impl Iterator<Item = (i32, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let thread = task.file_name().to_str()?.parse().ok()?;
        Some((thread, text.split(' ').next()?.parse().ok()?))
    })
}

impl Reading {
    /// Processor time since `earlier`, ns, of the threads that were there both times: one that ended meanwhile, such as
    /// an idle worker of a daemon, takes its sum along.
    pub fn cpu_ns_since(&self, earlier: &Self) -> u64 {
        let both = self
            .cpu_ns
            .iter()
            .filter_map(|(thread, now)| Some(now.saturating_sub(*earlier.cpu_ns.get(thread)?)));
        both.sum()
    }
}
