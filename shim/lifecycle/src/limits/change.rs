//! Computes a change of limits: what to write to the cgroup, and the plan afterwards.
//!
//! Called by: a container's driver. Pure. Invariants: only values that differ are written; the number of processes, the
//! devices and the behaviour of the OOM killer stay. Must not know: how limits are written, records.

use coracle_cgroup::Limits;

use crate::config::Resources;
use crate::record::{Payload, Plan};

/// The values to write so that a container planned as `plan` for `before` gets those of `after`.
pub fn difference(plan: &Plan, before: &Resources, after: &Resources) -> Limits {
    let of = match plan.payload {
        Payload::Wasm(_) => super::wasm_limits,
        Payload::Linux(_) => super::linux_limits,
    };
    let (old, new) = (of(before), of(after));
    // The kernel checks the two of a pair against each other, so they are written together.
    let memory = |limits: &Limits| (limits.memory_bytes, limits.memory_swap_bytes);
    let quota = |limits: &Limits| (limits.cpu_quota, limits.cpu_period);
    let (memory_bytes, memory_swap_bytes) = changed(memory(&old), memory(&new));
    let (cpu_quota, cpu_period) = changed(quota(&old), quota(&new));
    Limits {
        memory_bytes,
        memory_swap_bytes,
        cpu_quota,
        cpu_period,
        cpu_shares: changed(old.cpu_shares, new.cpu_shares),
        cpuset_cpus: changed(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: changed(old.cpuset_mems, new.cpuset_mems),
        hugepages: changed(old.hugepages, new.hugepages),
        unified: changed(old.unified, new.unified),
        ..Limits::default()
    }
}

/// `new` where it differs from `old`, else `None`.
fn changed<T: PartialEq + Default>(old: T, new: T) -> T {
    if old == new { T::default() } else { new }
}

/// The plan of a container once its limits were changed by `change`; `resources` are all that CRI requested.
pub fn replanned(plan: &Plan, resources: &Resources, change: &Limits) -> Plan {
    let mut plan = plan.clone();
    plan.memory_limit_bytes = super::memory_limit(resources);
    if let Payload::Linux(linux) = &mut plan.payload {
        let limits = &mut linux.limits;
        over(&mut limits.memory_bytes, change.memory_bytes);
        over(&mut limits.memory_swap_bytes, change.memory_swap_bytes);
        over(&mut limits.cpu_quota, change.cpu_quota);
        over(&mut limits.cpu_period, change.cpu_period);
        over(&mut limits.cpu_shares, change.cpu_shares);
        over(&mut limits.cpuset_cpus, change.cpuset_cpus.clone());
        over(&mut limits.cpuset_mems, change.cpuset_mems.clone());
        limits.hugepages.extend(change.hugepages.clone());
        limits.unified.extend(change.unified.clone());
    }
    plan
}

fn over<T>(old: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *old = new;
    }
}

#[cfg(test)]
mod tests {
    use coracle_spec::{IdRange, Identity, Spawn, WasmKind, WasmNetwork};

    use super::*;
    use crate::record::WasmPlan;

    fn plan() -> Plan {
        let range = IdRange {
            base: 1 << 16,
            size: IdRange::SIZE,
        };
        let identity = Identity {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            range,
        };
        Plan {
            image_id: String::new(),
            image_volumes: Vec::new(),
            layers: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: String::new(),
            mounts: Vec::new(),
            identity,
            stop_signal: 15,
            log_path: String::new(),
            cgroup: String::new(),
            memory_limit_bytes: None,
            spawn: Spawn::Fork,
            payload: Payload::Wasm(WasmPlan {
                module: "/m".into(),
                module_digest: String::new(),
                kind: WasmKind::Module,
                network: WasmNetwork::Off,
                resolver: None,
                toolbox: false,
                server: None,
                diagnosis: Default::default(),
                wasi_p3: false,
                rlimits: Vec::new(),
            }),
        }
    }

    #[test]
    fn only_changed_values_are_written_and_pairs_together() {
        let before = Resources {
            cpu_shares: 100,
            cpu_period: 100_000,
            memory_limit_bytes: 1 << 20,
            ..Resources::default()
        };
        assert_eq!(difference(&plan(), &before, &before), Limits::default());
        let after = Resources {
            cpu_quota: 5_000,
            memory_limit_bytes: 2 << 20,
            ..before.clone()
        };
        let expected = Limits {
            cpu_quota: Some(5_000),
            cpu_period: Some(100_000),
            memory_bytes: Some(2 << 20),
            ..Limits::default()
        };
        let change = difference(&plan(), &before, &after);
        assert_eq!(change, expected);
        let planned = replanned(&plan(), &after, &change);
        assert_eq!(planned.memory_limit_bytes, Some(2 << 20));
    }
}
