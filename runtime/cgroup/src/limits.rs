//! The limits of a cgroup, in the units of the OCI runtime specification.
//! The same for both cgroup versions; `v1` and `v2` translate them into files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::change::Write;
use super::devices::DeviceRule;
use super::error::Error;

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
    /// Memory plus swap in bytes; negative means no limit. Ignored where the node does not
    /// account swap.
    pub memory_swap_bytes: Option<i64>,
    /// Whether the OOM killer takes all processes of the cgroup together (`memory.oom.group`).
    /// Ignored on cgroup v1, which has no such setting.
    pub memory_oom_group: Option<bool>,
    /// Number of processes and threads; zero or less means no limit.
    pub pids: Option<i64>,
    /// CPUs the processes may run on, e.g. `0-3,8`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes they may allocate from, e.g. `0`.
    pub cpuset_mems: Option<String>,
    /// Huge pages in bytes by page size, as the kernel and CRI write it: `2MB`, `1GB`, `64KB`.
    /// Ignored where the node does not account huge pages; the kubelet sends a 0 for every size.
    pub hugepages: BTreeMap<String, u64>,
    /// The only devices that may be used; `None` sets no device policy.
    pub devices: Option<Vec<DeviceRule>>,
    /// Files of cgroup v2 and their values, e.g. `memory.high`. An error on cgroup v1.
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

/// The files of the hugetlb controller in `dir`, the directory of cgroup `path`, that `limits` (bytes
/// by page size) are to be written to: the limit of use and, where the kernel has it, the limit of
/// reservations. Errors: a size that is invalid or that the node does not have.
pub(super) fn hugepage_writes(
    path: &str,
    dir: &Path,
    suffix: &str,
    limits: &BTreeMap<String, u64>,
) -> Result<Vec<Write>, Error> {
    let mut writes = Vec::new();
    for (size, bytes) in limits {
        let file = dir.join(format!("hugetlb.{size}.{suffix}"));
        if !is_page_size(size) || !file.exists() {
            return Err(Error::Unsupported {
                path: path.to_owned(),
                key: format!("hugepages of {size}"),
                why: "the node has none of that size",
            });
        }
        writes.push((file, bytes.to_string()));
        let reserved = dir.join(format!("hugetlb.{size}.rsvd.{suffix}"));
        if reserved.exists() {
            writes.push((reserved, bytes.to_string()));
        }
    }
    Ok(writes)
}

/// Whether `size` looks like a page size (`2MB`), so that it can be part of a file name.
fn is_page_size(size: &str) -> bool {
    let number = ["KB", "MB", "GB"]
        .into_iter()
        .find_map(|unit| size.strip_suffix(unit));
    number.is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_no_paths() {
        for size in ["2MB", "1GB", "64KB", "16384MB"] {
            assert!(is_page_size(size), "{size}");
        }
        for size in ["", "MB", "2M", "2mb", "../2MB", "2/MB", "2 MB", "-2MB"] {
            assert!(!is_page_size(size), "{size}");
        }
    }

    #[test]
    fn limits_of_an_older_build_are_read() {
        let text = r#"{"cpu_shares":2,"memory_bytes":-1,"unified":{"memory.high":"max"}}"#;
        let limits: Limits = serde_json::from_str(text).unwrap();
        assert_eq!(limits.cpu_shares, Some(2));
        assert_eq!(limits.devices, None);
        assert!(limits.hugepages.is_empty());
    }
}
