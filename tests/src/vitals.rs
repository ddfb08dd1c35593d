//! What a process holds: memory, descriptors, threads. Read from /proc.
//!
//! Called by: [`crate::churn`] and tests that hold a daemon to staying as small as it was.

use std::fs;

/// What one process holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Resident memory, KiB (`VmRSS`).
    pub rss_kib: u64,
    /// The part of it that belongs to no file, KiB (`RssAnon`): heap and stacks.
    pub anonymous_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
}

impl Vitals {
    /// Reads them now. Errors: the process is gone.
    pub fn of(pid: i32) -> Result<Self, String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        let status = status.map_err(|e| format!("read the status of process {pid}: {e}"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        let descriptors =
            descriptors.map_err(|e| format!("list the descriptors of process {pid}: {e}"))?;
        Ok(Self {
            rss_kib: number(&status, "VmRSS:"),
            anonymous_kib: number(&status, "RssAnon:"),
            descriptors: descriptors.count(),
            threads: number(&status, "Threads:"),
        })
    }
}

/// What each open descriptor of a process leads to, sorted; the numbers of sockets and pipes are left out, so that two
/// lists can be compared.
pub fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    let mut targets: Vec<String> = links
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .map(|target| match target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => target,
        })
        .collect();
    targets.sort();
    targets
}

/// The number after `name` in a file of `Name: number` lines; 0 when it is not there.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
