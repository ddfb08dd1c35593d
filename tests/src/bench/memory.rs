//! What a runtime costs while its pods are idle: memory and processor time, read from /proc.

use std::fs;

use crate::procs;
use crate::scratch::Scratch;

/// What is read at one moment, over all processes of a scratch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Resident memory of the daemon, KiB.
    pub daemon_rss_kib: u64,
    /// Proportional memory of every other process, KiB.
    pub others_pss_kib: u64,
    /// The machine's MemAvailable, KiB.
    pub available_kib: u64,
    /// Processor time that all processes of the scratch have had, ns.
    pub cpu_ns: u64,
    /// Processes but for the daemon.
    pub processes: usize,
}

/// Reads everything now.
pub fn read(scratch: &Scratch, daemon: i32) -> Reading {
    let mut reading = Reading {
        available_kib: field("/proc/meminfo", "MemAvailable:"),
        ..Reading::default()
    };
    for process in procs::of_scratch(scratch) {
        reading.cpu_ns += cpu_ns(process.pid);
        if process.pid == daemon {
            reading.daemon_rss_kib = field(&format!("/proc/{daemon}/status"), "VmRSS:");
        } else {
            reading.others_pss_kib += field(&format!("/proc/{}/smaps_rollup", process.pid), "Pss:");
            reading.processes += 1;
        }
    }
    reading
}

/// The first number after `name` in a file of `Name: number kB` lines; 0 when it is not there.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn cpu_ns(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    times
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}
