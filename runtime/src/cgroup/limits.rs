//! What a cgroup may use, in the units of the OCI runtime specification.
//! One shape for both cgroup versions; `v1` and `v2` translate it into files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The limits of one cgroup. `None` leaves the kernel's value (or the value set earlier) alone.
/// Source: OCI runtime-spec `linux.resources`, which CRI's `LinuxContainerResources` mirrors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Relative CPU share, 2 to 262144. On cgroup v2 it becomes `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; negative means no limit.
    pub cpu_quota: Option<i64>,
    /// The period of `cpu_quota` in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory in bytes; negative means no limit.
    pub memory_bytes: Option<i64>,
    /// Memory plus swap in bytes; negative means no limit. Left out where the node does not
    /// account swap.
    pub memory_swap_bytes: Option<i64>,
    /// Number of processes and threads; zero or less means no limit.
    pub pids: Option<i64>,
    /// CPUs the processes may run on, e.g. `0-3,8`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes they may allocate from, e.g. `0`.
    pub cpuset_mems: Option<String>,
    /// Files of cgroup v2 to be written as they are, e.g. `memory.high`. An error on cgroup v1.
    pub unified: BTreeMap<String, String>,
}

impl Limits {
    /// `pids` as `pids.max` wants it.
    pub(super) fn pids_max(&self) -> Option<String> {
        self.pids.map(|pids| {
            if pids > 0 {
                pids.to_string()
            } else {
                "max".to_owned()
            }
        })
    }
}
