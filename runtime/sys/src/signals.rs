//! Signal dispositions, mask and other attributes that survive a fork and must not leak into a container process.
//!
//! Called first thing in the spawner, in each keeper and in each container process.
//! Invariant: after [`reset`] the process has default dispositions except for faults and SIGPIPE (ignored), an empty
//! mask, the usual scheduling, umask 022 and the affinity of the node.

use std::io;
use std::time::Duration;

/// Resets signals, scheduling, umask and affinity to those of a new process.
///
/// Errors: none; what the kernel refuses stays as it was. SIGPIPE stays ignored: our own writes report EPIPE.
///
/// The four fault signals are left alone: in a process of ours they are at their default or they are wasmtime's, which
/// installs its handlers once, before any fork, and turns faults of guest code into traps.
pub fn reset() {
    // SAFETY: the calls change dispositions and the mask of this process only; the structs are zeroed, which means
    // SIG_DFL with no flags and an empty set.
    unsafe {
        for signal in 1..=64 {
            let fault = matches!(
                signal,
                libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL
            );
            if fault || matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | 33) {
                continue;
            }
            let action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        // glibc reserves these two and refuses to change them; the kernel does not.
        let default = [0_u64; 4];
        for signal in [32, 33] {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::umask(0o022);
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        for cpu in 0..libc::CPU_SETSIZE as usize {
            libc::CPU_SET(cpu, &mut all);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const all);
    }
    crate::scheduling::reset();
}

/// A handler of stop signals: the signal, what [`grace_of`] reads, and what else the kernel passes.
pub type StopHandler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Calls `handler` for every signal that may serve as a stop signal, on whichever thread gets it.
///
/// Left alone: KILL and STOP, the faults that wasmtime handles, SIGSYS, and those whose default is to do nothing.
/// The handler may only do what is async-signal-safe.
pub fn catch_stops(handler: StopHandler) -> io::Result<()> {
    use libc::{
        SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGILL, SIGKILL, SIGPIPE, SIGSEGV, SIGSTOP, SIGSYS,
        SIGURG, SIGWINCH,
    };
    let left = [
        SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS, SIGCHLD, SIGCONT, SIGURG,
        SIGWINCH, SIGPIPE, 32, 33,
    ];
    for signal in (1..=64).filter(|s| !left.contains(s)) {
        // SAFETY: the struct is zeroed and then given a handler of the three-argument kind (SA_SIGINFO); the caller
        // promises that the handler is async-signal-safe. No SA_RESTART: a blocked call is to be interrupted.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Resets SIGPIPE to its default, for a program that is about to be executed.
pub fn default_pipe() {
    // SAFETY: sets a disposition of this process; nothing of ours runs after it but execve.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Makes the kernel kill this process when its parent ends. To be called after the last change of user.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl takes integers here.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the kernel reap this process's children.
pub fn ignore_children() {
    // SAFETY: sets a disposition to SIG_IGN, which makes the kernel reap children by itself.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// The system calls of [`sleep`], whichever the C library makes.
#[cfg(target_arch = "x86_64")]
pub const SLEEP: &[libc::c_long] = &[libc::SYS_pause, libc::SYS_ppoll];
/// The system calls of [`sleep`].
#[cfg(not(target_arch = "x86_64"))]
pub const SLEEP: &[libc::c_long] = &[libc::SYS_ppoll];

/// Sleeps until a signal is handled.
pub fn sleep() {
    // SAFETY: pause takes nothing and only waits.
    unsafe { libc::pause() };
}

/// Sends any signal, real-time ones included, through a pidfd.
pub fn send_raw(pidfd: std::os::fd::BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: pidfd_send_signal takes integers and a null siginfo, which the kernel fills itself.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends any signal through a pidfd, and says to its handler when the process will be killed: see [`grace_of`].
///
/// Errors: as of pidfd_send_signal(2).
pub fn send_with_grace(
    pidfd: std::os::fd::BorrowedFd<'_>,
    signal: i32,
    grace: Duration,
) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // The beginning of siginfo_t for SI_QUEUE on 64-bit machines, padded to its 128 bytes. Source: sigaction(2).
    #[repr(C)]
    struct Queued {
        signal: i32,
        errno: i32,
        code: i32,
        pad: i32,
        pid: i32,
        uid: u32,
        millis: i64,
        rest: [u64; 12],
    }
    const { assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>()) };
    let info = Queued {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: 0,
        uid: 0,
        millis: i32::try_from(grace.as_millis()).unwrap_or(i32::MAX).into(),
        rest: [0; 12],
    };
    let (fd, info) = (pidfd.as_raw_fd(), &raw const info);
    // SAFETY: pidfd_send_signal reads a siginfo_t behind the pointer, and `info` has its size and is initialized.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Milliseconds after which the sender of a signal will kill this process; `None` if it was not sent by
/// [`send_with_grace`]. For signal handlers.
///
/// # Safety
///
/// `info` is what the kernel passed to a [`StopHandler`] that has not returned yet.
pub unsafe fn grace_of(info: *const libc::siginfo_t) -> Option<i32> {
    // SAFETY: the caller promises that `info` is valid; SI_QUEUE says that its sender filled in the value, an integer
    // that has the size of a pointer.
    unsafe {
        let is_queued = (*info).si_code == libc::SI_QUEUE;
        is_queued.then(|| (*info).si_value().sival_ptr as isize as i32)
    }
}

/// The wait status of a process that was reaped by somebody else, from `PIDFD_GET_INFO` (Linux 6.15 and later).
pub fn reaped_status(pidfd: i32) -> Option<i32> {
    // struct pidfd_info, first published size: mask, cgroupid, 4 ids, 8 more ids, exit_code: 64 bytes.
    const SIZE: usize = 64;
    const INFO_EXIT: u64 = 1 << 3;
    let mut info = [0_u64; SIZE / 8];
    info[0] = INFO_EXIT;
    let request: libc::c_ulong = 0xC000_FF0B | ((SIZE as libc::c_ulong) << 16);
    // SAFETY: the request number encodes the size of the buffer behind the pointer, and the kernel writes no more.
    let result = unsafe { libc::ioctl(pidfd, request as _, info.as_mut_ptr()) };
    if result != 0 || info[0] & INFO_EXIT == 0 {
        return None;
    }
    // exit_code is the last 32-bit field of the 64 bytes.
    Some((info[7] >> 32) as i32)
}
