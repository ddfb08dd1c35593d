//! Limits of cgroups that plugins set: collected, and turned into the lifecycle's.
//!
//! Called by [`super`] for containers that are created, [`crate::updates`] for others. Pure.
//! Invariant: a limit that cannot be set is refused with its name. Must not know: cgroup files.

use coracle_lifecycle::Resources;
use coracle_proto::nri::v1 as nri;

use crate::owners::{Field, Owners};

/// The limit of processes that goes with some limits; it is no part of [`Resources`].
pub type Pids = Option<i64>;

/// Takes `$new.$field` over into `$all.$field` for `$plugin`.
macro_rules! take {
    ($all:expr, $new:expr, $field:ident, $kind:expr, $owners:expr, $plugin:expr) => {
        if let Some(value) = $new.$field {
            $owners.claim($kind, "", $plugin)?;
            $all.$field = Some(value);
        }
    };
}

/// Adds what `plugin` sets. Errors: a limit that this runtime does not set; one that another plugin has set.
pub fn add(
    all: &mut nri::LinuxResources,
    new: nri::LinuxResources,
    plugin: &str,
    owners: &mut Owners,
) -> Result<(), String> {
    refuse(&new)?;
    if let Some(memory) = new.memory {
        let own = all.memory.get_or_insert_default();
        take!(own, memory, limit, Field::MemLimit, owners, plugin);
        take!(own, memory, swap, Field::MemSwapLimit, owners, plugin);
    }
    if let Some(cpu) = new.cpu {
        let own = all.cpu.get_or_insert_default();
        take!(own, cpu, shares, Field::CpuShares, owners, plugin);
        take!(own, cpu, quota, Field::CpuQuota, owners, plugin);
        take!(own, cpu, period, Field::CpuPeriod, owners, plugin);
        for (own, new, field) in [
            (&mut own.cpus, cpu.cpus, Field::CpusetCpus),
            (&mut own.mems, cpu.mems, Field::CpusetMems),
        ] {
            if !new.is_empty() {
                owners.claim(field, "", plugin)?;
                *own = new;
            }
        }
    }
    for limit in new.hugepage_limits {
        owners.claim(Field::HugepageLimits, &limit.page_size, plugin)?;
        all.hugepage_limits
            .retain(|known| known.page_size != limit.page_size);
        all.hugepage_limits.push(limit);
    }
    for (file, value) in new.unified {
        owners.claim(Field::CgroupsUnified, &file, plugin)?;
        all.unified.insert(file, value);
    }
    take!(all, new, pids, Field::PidsLimit, owners, plugin);
    Ok(())
}

/// Errors: the first limit that is set and that this runtime does not set.
fn refuse(new: &nri::LinuxResources) -> Result<(), String> {
    let memory = |is_set: fn(&nri::LinuxMemory) -> bool| new.memory.as_ref().is_some_and(is_set);
    let cpu = |is_set: fn(&nri::LinuxCpu) -> bool| new.cpu.as_ref().is_some_and(is_set);
    let present = [
        ("memory.reservation", memory(|m| m.reservation.is_some())),
        ("memory.kernel", memory(|m| m.kernel.is_some())),
        ("memory.kernel_tcp", memory(|m| m.kernel_tcp.is_some())),
        ("memory.swappiness", memory(|m| m.swappiness.is_some())),
        (
            "memory.disable_oom_killer",
            memory(|m| m.disable_oom_killer.is_some()),
        ),
        (
            "memory.use_hierarchy",
            memory(|m| m.use_hierarchy.is_some()),
        ),
        (
            "cpu.realtime_runtime",
            cpu(|c| c.realtime_runtime.is_some()),
        ),
        ("cpu.realtime_period", cpu(|c| c.realtime_period.is_some())),
        ("blockio_class", new.blockio_class.is_some()),
        ("rdt_class", new.rdt_class.is_some()),
        ("devices", !new.devices.is_empty()),
    ];
    match present.iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(format!("resources: this runtime does not set {name}")),
        None => Ok(()),
    }
}

/// Shows the limits `all` in those of a container.
pub fn show(shown: &mut nri::LinuxResources, all: &nri::LinuxResources) {
    if let Some(memory) = &all.memory {
        let own = shown.memory.get_or_insert_default();
        own.limit = memory.limit.or(own.limit);
        own.swap = memory.swap.or(own.swap);
    }
    if let Some(cpu) = &all.cpu {
        let own = shown.cpu.get_or_insert_default();
        own.shares = cpu.shares.or(own.shares);
        own.quota = cpu.quota.or(own.quota);
        own.period = cpu.period.or(own.period);
        for (own, new) in [(&mut own.cpus, &cpu.cpus), (&mut own.mems, &cpu.mems)] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }
    for limit in &all.hugepage_limits {
        let own = &mut shown.hugepage_limits;
        own.retain(|known| known.page_size != limit.page_size);
        own.push(limit.clone());
    }
    shown.unified.extend(all.unified.clone());
    shown.pids = all.pids.or(shown.pids);
}

/// `before` with the limits `set`, and the limit of processes. Errors: a value is out of range.
pub fn merge(before: &Resources, set: &nri::LinuxResources) -> Result<(Resources, Pids), String> {
    let mut after = before.clone();
    let signed = |own: &mut i64, value: Option<nri::OptionalInt64>| {
        if let Some(value) = value {
            *own = value.value;
        }
    };
    let unsigned = |own: &mut i64, value: Option<nri::OptionalUInt64>, name: &str| {
        let Some(value) = value else { return Ok(()) };
        *own = i64::try_from(value.value)
            .map_err(|_| format!("resources: {name} {} is too large", value.value))?;
        Ok::<(), String>(())
    };
    if let Some(memory) = &set.memory {
        signed(&mut after.memory_limit_bytes, memory.limit);
        signed(&mut after.memory_swap_limit_bytes, memory.swap);
    }
    if let Some(cpu) = &set.cpu {
        unsigned(&mut after.cpu_shares, cpu.shares, "cpu.shares")?;
        unsigned(&mut after.cpu_period, cpu.period, "cpu.period")?;
        signed(&mut after.cpu_quota, cpu.quota);
        for (own, new) in [
            (&mut after.cpuset_cpus, &cpu.cpus),
            (&mut after.cpuset_mems, &cpu.mems),
        ] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }
    for limit in &set.hugepage_limits {
        let own = &mut after.hugepages;
        own.retain(|(size, _)| *size != limit.page_size);
        own.push((limit.page_size.clone(), limit.limit));
    }
    after.unified.extend(set.unified.clone());
    Ok((after, set.pids.as_ref().map(|pids| pids.limit)))
}
