//! Converts CRI's resources to the limits of a cgroup.
//!
//! Called by: the host when it creates a container's cgroup; a driver that changes limits. Pure.
//! Invariant: 0 and empty mean "not set", as in CRI. Must not know: cgroup files.

mod change;

use coracle_cgroup::Limits;

use super::config::Resources;

pub use change::{difference, replanned};

/// Most processes and threads of a Wasm instance: the engine needs a few, the instance cannot create any.
const WASM_PIDS: i64 = 128;

/// The limits of a Wasm container's cgroup.
pub fn wasm_limits(requested: &Resources) -> Limits {
    Limits {
        pids: Some(WASM_PIDS),
        ..common(requested)
    }
}

/// The limits of a Linux container's cgroup except devices and processes, which its handler and the node decide. A memory limit without a swap limit counts for both
/// together, as in containerd and CRI-O: otherwise a container could use twice its limit on a node with swap.
pub fn linux_limits(requested: &Resources) -> Limits {
    let limits = common(requested);
    Limits {
        memory_swap_bytes: limits.memory_swap_bytes.or(limits.memory_bytes),
        ..limits
    }
}

fn common(requested: &Resources) -> Limits {
    Limits {
        cpu_shares: positive(requested.cpu_shares),
        cpu_quota: (requested.cpu_quota != 0).then_some(requested.cpu_quota),
        cpu_period: positive(requested.cpu_period),
        memory_bytes: (requested.memory_limit_bytes > 0).then_some(requested.memory_limit_bytes),
        memory_swap_bytes: (requested.memory_swap_limit_bytes != 0)
            .then_some(requested.memory_swap_limit_bytes),
        cpuset_cpus: text(&requested.cpuset_cpus),
        cpuset_mems: text(&requested.cpuset_mems),
        hugepages: requested.hugepages.iter().cloned().collect(),
        unified: requested.unified.clone(),
        ..Limits::default()
    }
}

/// The memory limit in bytes; `None` when there is none.
pub fn memory_limit(requested: &Resources) -> Option<u64> {
    positive(requested.memory_limit_bytes)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_values_are_left_to_the_kernel() {
        let limits = wasm_limits(&Resources::default());
        assert_eq!(
            limits,
            Limits {
                pids: Some(WASM_PIDS),
                ..Limits::default()
            }
        );
    }

    #[test]
    fn values_are_converted_and_unlimited_cpu_stays_negative() {
        let requested = Resources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 20,
            cpuset_cpus: "0-1".to_owned(),
            hugepages: vec![("2MB".to_owned(), 4 << 20)],
            ..Resources::default()
        };
        let limits = wasm_limits(&requested);
        assert_eq!(limits.cpu_quota, Some(-1));
        assert_eq!(limits.cpu_period, Some(100_000));
        assert_eq!(limits.cpu_shares, Some(512));
        assert_eq!(limits.memory_bytes, Some(1 << 20));
        assert_eq!(limits.cpuset_cpus.as_deref(), Some("0-1"));
        assert_eq!(limits.hugepages["2MB"], 4 << 20);
        assert_eq!(memory_limit(&requested), Some(1 << 20));
    }

    #[test]
    fn a_linux_container_may_fork_and_does_not_swap_beyond_its_limit() {
        let requested = |memory, swap| Resources {
            memory_limit_bytes: memory,
            memory_swap_limit_bytes: swap,
            ..Resources::default()
        };
        for (memory, swap, expected) in [
            (0, 0, None),
            (10, 0, Some(10)),
            (10, 15, Some(15)),
            (10, -1, Some(-1)),
        ] {
            let limits = linux_limits(&requested(memory, swap));
            assert_eq!((limits.memory_swap_bytes, limits.pids), (expected, None));
        }
    }
}
