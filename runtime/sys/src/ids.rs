//! Identity of the calling process: user and group ids, groups, capabilities, securebits.
//!
//! Called by `sandbox` while the container process is single-threaded; the calls are the kernel's per-thread ones.
//! Invariant: after [`drop_capabilities`] all five sets are empty and cannot grow again.

use std::io;
use std::os::fd::BorrowedFd;

use super::dump;
use super::fork::pid_of;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Keeps the capability sets over later id changes, so that mounts can be created as the pod's own root.
pub fn keep_capabilities_over_id_change() -> io::Result<()> {
    Ok(set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_SETUID_FIXUP,
    )?)
}

/// Creates files from now on as `uid` and `gid` (filesystem ids only), and stays not dumpable.
///
/// Errors: EPERM when an id did not change, which the calls themselves do not report.
pub fn set_filesystem_ids(uid: u32, gid: u32) -> io::Result<()> {
    const NONE: u32 = u32::MAX;
    // SAFETY: each call takes one integer and changes only this thread's filesystem ids; an id that does not exist
    // changes nothing and gives the present one.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        [
            libc::syscall(libc::SYS_setfsuid, NONE),
            libc::syscall(libc::SYS_setfsgid, NONE),
        ]
    };
    if now != [libc::c_long::from(uid), libc::c_long::from(gid)] {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    dump::forbid()
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    // SAFETY: umask takes an integer and cannot fail.
    unsafe { libc::umask(mask & 0o777) };
}

/// Whether group `gid` exists in this process's user namespace.
pub fn is_group_mapped(gid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => (first..first + count).contains(&gid.into()),
            _ => false,
        }
    })
}

/// The real user of the process behind `pidfd`, in the pid namespace of the mounted `/proc`.
///
/// Errors: `/proc` cannot be read; ESRCH when the process is gone.
pub fn user_of(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let pid = pid_of(pidfd)?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    // If this process is still there, the number was not another's meanwhile.
    pid_of(pidfd)?;
    let users = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = users.and_then(|users| users.split_ascii_whitespace().next()?.parse().ok());
    real.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Keeps the permitted capabilities over the next change from root to another user; undone by execve(2).
pub fn keep_capabilities() -> io::Result<()> {
    // SAFETY: prctl takes integers here.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })
}

/// Takes everything outside `kept` (bit 0 is CAP_CHOWN) out of the bounding set.
pub fn bound_capabilities(kept: u64) -> io::Result<()> {
    for bit in 0..64 {
        if kept & (1 << bit) != 0 {
            continue;
        }
        // SAFETY: prctl takes integers here. EINVAL: this kernel has no such capability.
        match check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, bit, 0, 0, 0) })
        {
            Err(e) if e.raw_os_error() != Some(libc::EINVAL) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets to `permitted`, the inheritable and ambient ones to `ambient`.
///
/// Errors: EPERM for a capability that the process does not have.
pub fn take_capabilities(permitted: u64, ambient: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two 32-bit halves of effective, permitted and inheritable.
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |set: u64, high: bool| (if high { set >> 32 } else { set }) as u32;
    let data = [false, true].map(|high| {
        [
            half(permitted, high),
            half(permitted, high),
            half(ambient, high),
        ]
    });
    // SAFETY: header and data have the layout of version 3 and live until the call returns.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    const AMBIENT_RAISE: libc::c_long = 2;
    for bit in (0..64).filter(|bit| ambient & (1_u64 << bit) != 0) {
        // SAFETY: prctl takes integers here.
        check(unsafe {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_CAP_AMBIENT,
                AMBIENT_RAISE,
                bit,
                0,
                0,
            )
        })?;
    }
    Ok(())
}

/// Becomes `uid`, `gid` with supplementary `groups`, in all their variants, and stays not dumpable.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: setgroups reads `len` ids from the pointer, which the slice guarantees; the other two take integers.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    dump::forbid()
}

/// Empties the bounding, ambient, inheritable, permitted and effective sets and locks the securebits.
pub fn drop_capabilities() -> io::Result<()> {
    clear_ambient_capability_set()?;
    for bit in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else {
            continue;
        };
        match remove_capability_from_bounding_set(capability) {
            // EINVAL: this kernel has no such capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked)?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn the_user_of_a_process_is_found_until_it_is_gone() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .uid(54_321)
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(user_of(pidfd.as_fd()).unwrap(), 54_321);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(user_of(pidfd.as_fd()).is_err());
    }
}
