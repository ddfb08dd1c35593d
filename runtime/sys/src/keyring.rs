//! A session keyring of a process's own, so that it finds no key of the daemon or of another container.
//!
//! Called by the daemon at its start and by every container process, as host root.
//!
//! A keyring counts against the quota of the real user who makes it, and every container that runs as host root shares
//! one user's: one of them could use it up and stop all others from starting. So each keyring is charged to a user id
//! drawn at random among two thousand million that no pod is given, which nobody can fill in advance.
//! Invariant: success means that the keyring is new and empty; every failure is fatal, because the process would
//! keep its parent's keyring.
//! Not here: keys.

use std::io;

/// The first user id that owns keyrings; pods' ranges end below it.
const FIRST_OWNER: u32 = 1 << 31;
/// How many owners are tried when their quota is exhausted.
const OWNERS: usize = 4;

/// Joins a new, empty session keyring. The filesystem ids become the effective ones.
///
/// Errors: the kernel's: ENOSYS without keyrings, EDQUOT when no tried id has quota left,
/// EPERM under a seccomp filter.
pub fn join_own() -> io::Result<()> {
    let mut joined = Err(io::Error::from_raw_os_error(libc::EDQUOT));
    for _ in 0..OWNERS {
        joined = join_as(random_owner()?);
        match &joined {
            Err(e) if e.raw_os_error() == Some(libc::EDQUOT) => {}
            // In a container's user namespace not every id exists.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return join(),
            _ => break,
        }
    }
    joined
}

/// Joins one that `owner` is charged for. The real user is host root before and after.
fn join_as(owner: u32) -> io::Result<()> {
    set_real_user(owner)?;
    let joined = join();
    set_real_user(0).and(joined)
}

fn random_owner() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    // 2^32 - 1 is no id.
    Ok(FIRST_OWNER | (u32::from_ne_bytes(bytes) >> 1).min(FIRST_OWNER - 2))
}

fn set_real_user(uid: u32) -> io::Result<()> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: setresuid takes three integers; the raw call changes this thread only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, KEEP, KEEP) })
}

fn join() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the operation takes a name or null for an anonymous keyring; null touches no memory.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0, 0, 0, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn session() -> i64 {
        const GET_ID: i64 = 0;
        const SESSION: i64 = -3;
        // SAFETY: the operation takes integers.
        unsafe { libc::syscall(libc::SYS_keyctl, GET_ID, SESSION, 0, 0, 0) }
    }

    #[test]
    fn each_process_gets_another_one() {
        // Credentials, and with them the keyring, are a thread's.
        let of_a_thread = || {
            std::thread::spawn(|| {
                join_own().unwrap();
                (session(), rustix::process::getuid().as_raw())
            })
            .join()
            .unwrap()
        };
        let (first, second) = (of_a_thread(), of_a_thread());
        assert!(first.0 > 0 && second.0 > 0 && first.0 != second.0);
        assert_ne!(first.0, session());
        assert_eq!((first.1, second.1), (0, 0), "the real user is restored");
    }
}
