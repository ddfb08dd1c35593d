//! seccomp(2): loads a ready filter.
//!
//! Called by `sandbox`, whose library builds filters and cannot load ready ones, and by processes of ours that only wait.
//! Invariant: all threads or none get it.
//! Not here: what a container's filter allows.

use std::io;

/// Installs the instructions in `bytes` on all threads of this process, with `flags` of seccomp(2) beside.
///
/// Errors: more instructions than a length of 16 bits counts, or the kernel refuses.
pub fn install(bytes: &[u8], flags: u32) -> io::Result<()> {
    const SET_MODE_FILTER: libc::c_long = 1;
    const TSYNC: libc::c_long = 1;
    let len = u16::try_from(bytes.len() / size_of::<libc::sock_filter>())
        .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut program: Vec<libc::sock_filter> = Vec::with_capacity(usize::from(len));
    for step in bytes.chunks_exact(size_of::<libc::sock_filter>()) {
        program.push(libc::sock_filter {
            code: u16::from_ne_bytes([step[0], step[1]]),
            jt: step[2],
            jf: step[3],
            k: u32::from_ne_bytes([step[4], step[5], step[6], step[7]]),
        });
    }
    let wanted = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `wanted` points at `len` instructions that live until the call returns; the kernel copies them.
    let result = unsafe {
        let flags = TSYNC | libc::c_long::from(flags);
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const wanted)
    };
    match result {
        0 => Ok(()),
        // With TSYNC, a thread that cannot follow is the result.
        thread if thread > 0 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills this process at any system call but `numbers`, none of which may be executed by a caller of 32 bits.
///
/// Errors: the kernel refuses, as without no_new_privs.
pub fn allow_only(numbers: &[libc::c_long]) -> io::Result<()> {
    // Source: include/uapi/linux/audit.h.
    const NATIVE: u32 = match cfg!(target_arch = "aarch64") {
        true => 0xc000_00b7,
        false => 0xc000_003e,
    };
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let compare = |equal, other, value| {
        let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        step(code, equal, other, value)
    };
    let end = |action| step(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let mut steps = vec![
        load(ARCHITECTURE),
        compare(1, 0, NATIVE),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    for number in numbers {
        steps.push(compare(0, 1, *number as u32));
        steps.push(end(libc::SECCOMP_RET_ALLOW));
    }
    steps.push(end(libc::SECCOMP_RET_KILL_PROCESS));
    install(&steps.concat(), 0)
}

/// The bytes of one instruction, `struct sock_filter`.
fn step(code: u32, equal: u8, other: u8, value: u32) -> [u8; 8] {
    let [a, b] = (code as u16).to_ne_bytes();
    let [c, d, e, f] = value.to_ne_bytes();
    [a, b, equal, other, c, d, e, f]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;
    use crate::fork::{self, Forked};

    /// How a child ends that may only exit and then does `work`.
    fn ended(work: impl FnOnce()) -> rustix::process::WaitIdStatus {
        match fork::fork(0, None).unwrap() {
            Forked::Child => {
                rustix::thread::set_no_new_privs(true).unwrap();
                allow_only(&[libc::SYS_exit_group, libc::SYS_exit]).unwrap();
                work();
                fork::leave(3)
            }
            Forked::Parent { pidfd } => waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                .unwrap()
                .unwrap(),
        }
    }

    #[test]
    fn what_is_listed_works_and_everything_else_is_the_end() {
        fork::test_alone("seccomp::tests::children_do_what_is_listed_or_end");
    }

    #[test]
    #[ignore = "it forks; the test above runs it in a process of its own"]
    fn children_do_what_is_listed_or_end() {
        assert_eq!(ended(|| ()).exit_status(), Some(3));
        let killed = ended(|| assert!(rustix::process::getppid().is_some()));
        assert_eq!(killed.terminating_signal(), Some(libc::SIGSYS));
    }
}
