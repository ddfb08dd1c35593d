//! How many processes and threads a Linux container may have.
//!
//! Called by: [`super::plan`]; `coracle check`, for what it says. Invariant: whatever a handler allows, a container leaves three
//! quarters of the node's processes to others: whoever has the last one keeps the daemon and the kubelet from forking, as root
//! is not exempt. Must not know: cgroup files, what the kubelet sets for the pod.

use std::fs;
use std::path::Path;

/// The part of the node's processes that one container may have.
const SHARE: u64 = 4;
/// The kernel's limits of the whole node: of threads, and of numbers for them.
const FILES: [&str; 2] = ["threads-max", "pid_max"];

/// The limit of a container whose handler says `wanted`; `None` is none.
pub fn pids_limit(wanted: u64) -> Option<u64> {
    limit(wanted, node_pids())
}

/// Most processes and threads of the node; `None` if the kernel does not say.
pub fn node_pids() -> Option<u64> {
    in_directory(Path::new("/proc/sys/kernel"))
}

fn in_directory(kernel: &Path) -> Option<u64> {
    let number = |file| {
        fs::read_to_string(kernel.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    FILES.into_iter().filter_map(number).min()
}

fn limit(wanted: u64, node: Option<u64>) -> Option<u64> {
    let most = node.map_or(u64::MAX, |node| (node / SHARE).max(1));
    (wanted > 0).then(|| wanted.min(most))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_what_its_handler_says_but_never_more_than_a_quarter_of_the_node() {
        for (wanted, node, expected) in [
            (32_768, Some(192_730), Some(32_768)),
            (32_768, Some(32_768), Some(8_192)),
            (100, Some(32_768), Some(100)),
            (100, Some(3), Some(1)),
            (100, None, Some(100)),
            (0, Some(32_768), None),
        ] {
            assert_eq!(limit(wanted, node), expected, "{wanted} of {node:?}");
        }
    }

    #[test]
    fn the_smaller_one_of_the_kernels_limits_counts() {
        let kernel = std::env::temp_dir().join(format!("coracle-pids-{}", std::process::id()));
        fs::create_dir_all(&kernel).unwrap();
        assert_eq!(in_directory(&kernel), None);
        fs::write(kernel.join("threads-max"), "192730\n").unwrap();
        assert_eq!(in_directory(&kernel), Some(192_730));
        fs::write(kernel.join("pid_max"), "32768\n").unwrap();
        assert_eq!(in_directory(&kernel), Some(32_768));
        fs::remove_dir_all(&kernel).unwrap();
        assert!(node_pids().is_some_and(|node| node >= 300));
    }
}
