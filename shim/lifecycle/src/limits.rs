//! CRI's resources as limits of a cgroup.
//!
//! Called by: the host when it makes a container's cgroup; a driver that changes limits. Pure.
//! Invariant: 0 and empty mean "not set", as in CRI. Not here: writing limits.

mod change;

use coracle_cgroup::Limits;

use super::config::Resources;

pub use change::{difference, replanned};

/// Most processes and threads of a Wasm guest: the engine needs a handful, a guest can make none.
const WASM_PIDS: i64 = 128;

/// The limits of a Wasm container's cgroup.
pub fn wasm_limits(asked: &Resources) -> Limits {
    Limits {
        pids: Some(WASM_PIDS),
        ..common(asked)
    }
}

/// The limits of a Linux container's cgroup but for its devices. A memory limit without a word on swap is one for both, as containerd
/// and CRI-O have it: else a container would take twice its limit wherever there is swap.
pub fn linux_limits(asked: &Resources) -> Limits {
    let limits = common(asked);
    Limits {
        memory_swap_bytes: limits.memory_swap_bytes.or(limits.memory_bytes),
        ..limits
    }
}

fn common(asked: &Resources) -> Limits {
    Limits {
        cpu_shares: positive(asked.cpu_shares),
        cpu_quota: (asked.cpu_quota != 0).then_some(asked.cpu_quota),
        cpu_period: positive(asked.cpu_period),
        memory_bytes: (asked.memory_limit_bytes > 0).then_some(asked.memory_limit_bytes),
        memory_swap_bytes: (asked.memory_swap_limit_bytes != 0)
            .then_some(asked.memory_swap_limit_bytes),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        hugepages: asked.hugepages.iter().cloned().collect(),
        unified: asked.unified.clone(),
        ..Limits::default()
    }
}

/// The memory limit in bytes; `None` when there is none.
pub fn memory_limit(asked: &Resources) -> Option<u64> {
    positive(asked.memory_limit_bytes)
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
    fn what_is_not_set_is_left_to_the_kernel() {
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
    fn values_arrive_and_unlimited_cpu_stays_negative() {
        let asked = Resources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 20,
            cpuset_cpus: "0-1".to_owned(),
            hugepages: vec![("2MB".to_owned(), 4 << 20)],
            ..Resources::default()
        };
        let limits = wasm_limits(&asked);
        assert_eq!(limits.cpu_quota, Some(-1));
        assert_eq!(limits.cpu_period, Some(100_000));
        assert_eq!(limits.cpu_shares, Some(512));
        assert_eq!(limits.memory_bytes, Some(1 << 20));
        assert_eq!(limits.cpuset_cpus.as_deref(), Some("0-1"));
        assert_eq!(limits.hugepages["2MB"], 4 << 20);
        assert_eq!(memory_limit(&asked), Some(1 << 20));
    }

    #[test]
    fn a_linux_container_may_fork_and_does_not_swap_beyond_its_limit() {
        let asked = |memory, swap| Resources {
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
            let limits = linux_limits(&asked(memory, swap));
            assert_eq!((limits.memory_swap_bytes, limits.pids), (expected, None));
        }
    }
}
