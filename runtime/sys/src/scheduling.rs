//! How the kernel schedules the calling process: its CPU time, its I/O and its memory nodes.
//!
//! Called for a payload of a container, before it gives up its privileges, and for each process of ours that is forked;
//! forks and programs that are executed inherit it.
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

/// Schedules the calling thread as a new process of the node is: `SCHED_OTHER`, nice 0, the I/O priority that follows from
/// that, no memory policy, timers as exact as usual. Whatever the daemon was started with is its own.
///
/// Errors: none; what the kernel refuses or has not stays as it was.
pub fn reset() {
    let _ = set_cpu(&CpuScheduling::default());
    let _ = set_io(0, 0);
    let _ = set_memory(0, &[]);
    // SAFETY: prctl takes integers here.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, USUAL_SLACK_NS, 0, 0, 0) };
}

/// The slack of timers of the node's first process. Nanoseconds. Source: prctl(2), PR_SET_TIMERSLACK.
const USUAL_SLACK_NS: libc::c_ulong = 50_000;

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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    /// Policy, nice, I/O priority, memory policy, slack of timers and flags of the calling thread.
    fn now() -> [i64; 6] {
        let mut mode = -1_i32;
        let mut own = SchedAttr {
            size: 0,
            policy: 99,
            flags: 0,
            nice: 99,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
        };
        let size = size_of::<SchedAttr>();
        // SAFETY: the kernel writes at most `size` bytes behind the first pointer, and an int behind the second one.
        unsafe {
            assert_eq!(
                libc::syscall(libc::SYS_sched_getattr, 0, &raw mut own, size, 0),
                0
            );
            libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, 0, 0, 0, 0);
            [
                i64::from(own.policy),
                i64::from(own.nice),
                libc::syscall(libc::SYS_ioprio_get, THIS_PROCESS, 0),
                i64::from(mode),
                libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0).into(),
                i64::from(own.flags as u32),
            ]
        }
    }

    #[test]
    fn what_the_daemon_was_started_with_is_not_passed_on() {
        // A thread of its own: the test's are shared.
        let (lowered, after) = std::thread::spawn(|| {
            set_io(3, 0).unwrap();
            let idle = CpuScheduling {
                policy: libc::SCHED_IDLE as u32,
                nice: 10,
                ..CpuScheduling::default()
            };
            set_cpu(&idle).unwrap();
            // SAFETY: prctl takes integers here.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_000, 0, 0, 0) };
            let lowered = now();
            reset();
            (lowered, now())
        })
        .join()
        .unwrap();
        assert_eq!(lowered[0], i64::from(libc::SCHED_IDLE));
        assert_eq!(lowered[4], 1_000_000);
        let [policy, nice, io, _, slack, flags] = after;
        assert_eq!((policy, nice, slack, flags), (0, 0, 50_000, 0), "{after:?}");
        // None of its own; some kernels tell the one that follows: best effort, 4.
        assert!([0, 2 << CLASS_SHIFT | 4].contains(&io), "{after:?}");
    }
}
