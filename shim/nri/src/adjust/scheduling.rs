//! What plugins say about the scheduling of a container's programs, as the kernel's numbers.
//!
//! Called by [`super`] for each adjustment, and by [`crate::adjusted`]. Pure. Source: sched_setattr(2), ioprio_set(2),
//! set_mempolicy(2). Invariant: what the kernel could not be told is refused with its value.
//! Must not know: setting any of it.

use coracle_proto::nri::v1 as nri;
use coracle_spec::{CpuPolicy, IoPriority, MemoryPolicy};

/// Most memory nodes that a kernel has. Source: `MAX_NUMNODES`.
const NODES: u32 = 1024;

/// The policies of NRI by number, as `SCHED_*` of the kernel and whether they have priorities.
const POLICIES: [Option<(u32, bool)>; 8] = [
    None,
    Some((0, false)),
    Some((1, true)),
    Some((2, true)),
    Some((3, false)),
    // SCHED_ISO was never built into Linux.
    None,
    Some((5, false)),
    Some((6, false)),
];

/// The I/O priority. Errors: the kernel has none like that.
pub fn io(given: &nri::LinuxIoPriority) -> Result<IoPriority, String> {
    let class = u16::try_from(given.class).ok().filter(|class| *class < 4);
    let level = u16::try_from(given.priority)
        .ok()
        .filter(|level| *level < 8);
    match (class, level) {
        (Some(0), Some(level)) if level != 0 => {
            Err(format!("priority {level} needs a class, and it has none"))
        }
        (Some(class), Some(level)) => Ok(IoPriority { class, level }),
        _ => Err(format!(
            "class {} with priority {} is none of 0 to 3 with 0 to 7",
            given.class, given.priority
        )),
    }
}

/// The CPU policy. Errors: the kernel has none like that.
pub fn cpu(given: &nri::LinuxScheduler) -> Result<CpuPolicy, String> {
    let found = usize::try_from(given.policy).ok();
    let found = found.and_then(|number| POLICIES.get(number).copied().flatten());
    let Some((policy, has_priority)) = found else {
        return Err(format!("policy {} is none of Linux", given.policy));
    };
    let range = if has_priority { 1..=99 } else { 0..=0 };
    let priority = u32::try_from(given.priority).ok();
    let Some(priority) = priority.filter(|priority| range.contains(priority)) else {
        return Err(format!(
            "priority {}: policy {} has {} to {}",
            given.priority,
            given.policy,
            range.start(),
            range.end()
        ));
    };
    if !(-20..=19).contains(&given.nice) {
        return Err(format!("nice {} is not between -20 and 19", given.nice));
    }
    let mut flags = 0;
    for flag in &given.flags {
        // RESET_ON_FORK, RECLAIM, DL_OVERRUN; others keep a policy or clamp by values that NRI does not carry.
        match flag {
            0..=2 => flags |= 1 << flag,
            other => return Err(format!("flag {other} is none of 0 to 2")),
        }
    }
    Ok(CpuPolicy {
        policy,
        flags,
        nice: given.nice,
        priority,
        runtime: given.runtime,
        deadline: given.deadline,
        period: given.period,
    })
}

/// The memory policy. Errors: the kernel has none like that; nodes that are no list.
pub fn memory(given: &nri::LinuxMemoryPolicy) -> Result<MemoryPolicy, String> {
    let Some(mode) = u32::try_from(given.mode).ok().filter(|mode| *mode <= 6) else {
        return Err(format!("mode {} is none of 0 to 6", given.mode));
    };
    let mut flags = 0;
    for flag in &given.flags {
        // MPOL_F_STATIC_NODES is bit 15, the others follow downwards.
        match flag {
            0..=2 => flags |= 1 << (15 - flag),
            other => return Err(format!("flag {other} is none of 0 to 2")),
        }
    }
    Ok(MemoryPolicy {
        mode: mode | flags,
        nodes: nodes(&given.nodes)?,
    })
}

/// Numbers and ranges separated by commas, such as `0-1,3`.
fn nodes(text: &str) -> Result<Vec<u32>, String> {
    let refused = || format!("nodes {text:?} are no list such as 0-1,3 below {NODES}");
    let number = |text: &str| {
        let number = text.parse::<u32>().ok();
        number.filter(|node| *node < NODES).ok_or_else(refused)
    };
    let mut nodes = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refused());
        }
        nodes.extend(first..=last);
    }
    nodes.sort_unstable();
    nodes.dedup();
    Ok(nodes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let idle = nri::LinuxIoPriority {
            class: nri::IoPrioClass::IoprioClassIdle as i32,
            priority: 0,
        };
        assert_eq!(io(&idle), Ok(IoPriority { class: 3, level: 0 }));
        let policies = [
            (1, 0, 0),
            (2, 1, 9),
            (3, 2, 9),
            (4, 3, 0),
            (6, 5, 0),
            (7, 6, 0),
        ];
        for (given, kernel, priority) in policies {
            let scheduler = nri::LinuxScheduler {
                policy: given,
                priority,
                flags: vec![0, 2],
                ..nri::LinuxScheduler::default()
            };
            let made = cpu(&scheduler).unwrap();
            assert_eq!((made.policy, made.flags), (kernel, 5));
        }
        let bind = nri::LinuxMemoryPolicy {
            mode: nri::MpolMode::MpolBind as i32,
            nodes: "3,0-1,1".to_owned(),
            flags: vec![0, 2],
        };
        let made = memory(&bind).unwrap();
        let mode = libc::MPOL_BIND | libc::MPOL_F_STATIC_NODES | libc::MPOL_F_NUMA_BALANCING;
        assert_eq!(i64::from(made.mode), i64::from(mode));
        assert_eq!(made.nodes, [0, 1, 3]);
    }

    #[test]
    fn what_the_kernel_has_not_is_refused_with_its_value() {
        for (class, priority) in [(4, 0), (-1, 0), (1, 8), (1, -1), (0, 1)] {
            assert!(io(&nri::LinuxIoPriority { class, priority }).is_err());
        }
        let scheduler = |policy, priority, nice, flag| {
            cpu(&nri::LinuxScheduler {
                policy,
                priority,
                nice,
                flags: vec![flag],
                ..nri::LinuxScheduler::default()
            })
        };
        assert!(scheduler(1, 0, 0, 0).is_ok());
        for refused in [
            scheduler(0, 0, 0, 0),
            scheduler(5, 0, 0, 0),
            scheduler(8, 0, 0, 0),
            scheduler(2, 0, 0, 0),
            scheduler(2, 100, 0, 0),
            scheduler(1, 1, 0, 0),
            scheduler(1, 0, 20, 0),
            scheduler(1, 0, 0, 3),
        ] {
            assert!(refused.is_err(), "{refused:?}");
        }
        for nodes in ["1-0", "a", "0,", "1024", "0-4294967295"] {
            let policy = nri::LinuxMemoryPolicy {
                mode: 2,
                nodes: nodes.to_owned(),
                flags: Vec::new(),
            };
            assert!(memory(&policy).unwrap_err().contains(nodes));
        }
    }
}
