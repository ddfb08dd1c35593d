//! How the kernel schedules the calling process: its CPU time, its I/O and its memory nodes.
//!
//! Called for a payload of a container, before it gives up its privileges; forks and programs that are executed inherit it.
//! Invariant: an error changes nothing. Not here: which values a container may have.

use std::io;

/// The CPU scheduling of a process. Source: sched_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuScheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For policies without priorities.
    pub nice: i32,
    /// For real-time policies.
    pub priority: u32,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub period: u64,
}

/// `struct sched_attr` of its first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `IOPRIO_WHO_PROCESS`.
const THIS_PROCESS: libc::c_long = 1;
/// `IOPRIO_CLASS_SHIFT`.
const CLASS_SHIFT: u32 = 13;

/// Schedules the calling thread by `wanted`.
///
/// Errors: EINVAL for a value out of range, EPERM where the caller or its cgroup may not have it.
pub fn set_cpu(wanted: &CpuScheduling) -> io::Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    // SAFETY: `attr` has the layout of the kernel's struct, whose size it states, and outlives the call; pid 0 is the
    // calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// Sets the I/O priority of the calling thread. Source: ioprio_set(2).
///
/// Errors: EINVAL for a value out of range, EPERM for the real-time class without privilege.
pub fn set_io(class: u16, level: u16) -> io::Result<()> {
    let value = u32::from(class) << CLASS_SHIFT | u32::from(level);
    // SAFETY: three integers; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, THIS_PROCESS, 0, value) })
}

/// Sets the memory policy of the calling thread: `mode` is `MPOL_*` with its flags. Source: set_mempolicy(2).
///
/// Errors: EINVAL for a mode that this kernel has not or nodes that do not fit it, ENOSYS without NUMA.
pub fn set_memory(mode: u32, nodes: &[u32]) -> io::Result<()> {
    const WORD: u32 = u64::BITS;
    let words = nodes.iter().max().map_or(0, |last| last / WORD + 1);
    let mut mask = vec![0_u64; words as usize];
    for node in nodes {
        mask[(node / WORD) as usize] |= 1 << (node % WORD);
    }
    // The kernel reads one bit less than it is told.
    let bits = match words {
        0 => 0,
        words => words * WORD + 1,
    };
    // SAFETY: the kernel reads `bits - 1` bits, rounded up to words, of `mask`, which has as many and outlives the call;
    // none with 0 bits.
    check(unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            mode,
            mask.as_ptr(),
            u64::from(bits),
        )
    })
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
