//! unshare(2): new namespaces for the calling thread.
//!
//! Called by `network` on threads of their own, and by `sandbox` in single-threaded processes.
//! Invariant: they count for no user that a container can be; see [`super::maker`].
//! Not here: which namespaces, user namespaces.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::maker::Maker;

/// Every namespace that clone(2) and unshare(2) make.
pub(crate) const ALL: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Unshares the namespaces of `flags`. Errors: the kernel refuses; EINVAL if `flags` contain CLONE_FILES, which is
/// no namespace, or CLONE_NEWUSER, for which there is [`super::userns`].
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.intersects(UnshareFlags::FILES | UnshareFlags::NEWUSER) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let maker = Maker::begin()?;
    // SAFETY: `unshare_unsafe` requires that other threads never use descriptors of an unshared table, which needs
    // CLONE_FILES: never among these flags.
    let made = unsafe { unshare_unsafe(flags) };
    maker.end()?;
    Ok(made?)
}

/// Makes a user namespace and those of `flags` in it for the calling process, which stays in them and has one thread.
///
/// It belongs to a user that nobody is: to the owner of a user namespace the kernel gives every capability in it.
/// Errors: the kernel refuses; EINVAL if `flags` contain CLONE_FILES.
pub(crate) fn unshare_with_user(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Without an end: the former user does not exist in the new namespace.
    let _maker = Maker::begin()?;
    // SAFETY: as above.
    Ok(unsafe { unshare_unsafe(flags | UnshareFlags::NEWUSER) }?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::process::{
        DumpableBehavior, Signal, WaitId, WaitIdOptions, dumpable_behavior, pidfd_send_signal,
        waitid,
    };
    use rustix::thread::{LinkNameSpaceType, capabilities_secure_bits, move_into_link_name_space};

    use super::*;
    use crate::fork::{self, Forked};
    use crate::userns::{self, Held, Holder};
    use crate::{empty, ids, signals};

    const KINDS: [(&str, UnshareFlags); 5] = [
        ("mnt", UnshareFlags::NEWNS),
        ("uts", UnshareFlags::NEWUTS),
        ("ipc", UnshareFlags::NEWIPC),
        ("net", UnshareFlags::NEWNET),
        ("cgroup", UnshareFlags::NEWCGROUP),
    ];

    /// What a test's process does; its exit code is the number of the first step that failed, 0 without one.
    type Step = fn() -> io::Result<()>;

    fn failed(what: &str) -> io::Error {
        io::Error::other(what.to_owned())
    }

    /// Runs `steps` as root of a user namespace with all ids, in which root has made as many namespaces as it may: one
    /// of each kind.
    fn where_root_has_none_left(steps: &[Step]) -> Option<i32> {
        let all = [(0, 0, u32::MAX)];
        let space = userns::hold(Holder::default(), &all, &all).unwrap();
        let user = space.open("user").unwrap();
        let Forked::Parent { pidfd } = fork::fork(0, None).unwrap() else {
            fork::leave(run(&user, steps));
        };
        exit_code(&pidfd)
    }

    fn exit_code(pidfd: &OwnedFd) -> Option<i32> {
        let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        ended.unwrap().unwrap().exit_status()
    }

    fn run(user: &OwnedFd, steps: &[Step]) -> i32 {
        let Ok(last) = use_up(user) else { return 100 };
        let number = steps.iter().position(|step| step().is_err());
        // It may not have come to ask for the end of its parent yet.
        let killed = pidfd_send_signal(&last, Signal::KILL);
        number.map_or(0, |number| number as i32 + 1) + 200 * i32::from(killed.is_err())
    }

    /// Returns the process that holds two of them.
    fn use_up(user: &OwnedFd) -> io::Result<OwnedFd> {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
        ids::become_user(0, 0, &[])?;
        let mut all = UnshareFlags::empty();
        for (kind, flag) in KINDS {
            std::fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "1")?;
            all |= flag;
        }
        for kind in ["pid", "user"] {
            std::fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "1")?;
        }
        // SAFETY: unsafe only for CLONE_FILES, which is not among the flags.
        unsafe { unshare_unsafe(all) }?;
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
        match fork::clone_as_we_are(flags as u64, libc::SIGCHLD, None)? {
            Forked::Parent { pidfd } => Ok(pidfd),
            Forked::Child => {
                let _ = signals::die_with_parent();
                loop {
                    signals::sleep();
                }
            }
        }
    }

    fn is_itself() -> io::Result<()> {
        let ids = std::fs::read_to_string("/proc/thread-self/status")?;
        let users = ids.lines().find(|line| line.starts_with("Uid:"));
        let bits = capabilities_secure_bits()?;
        match users {
            Some("Uid:\t0\t0\t0\t0") => {}
            _ => return Err(failed("it has other users")),
        }
        match dumpable_behavior()? {
            DumpableBehavior::NotDumpable if bits.is_empty() => Ok(()),
            _ => Err(failed("it has other secure bits, or is dumpable")),
        }
    }

    #[test]
    fn whoever_uses_up_what_root_may_have_does_not_stop_us() {
        fork::test_alone("namespaces::tests::what_root_may_have_is_used_up");
    }

    #[test]
    #[ignore = "the test above runs it in a process of its own"]
    fn what_root_may_have_is_used_up() {
        let refused: Step = || {
            for (_, flag) in KINDS {
                // SAFETY: unsafe only for CLONE_FILES, which is not among the flags.
                match unsafe { unshare_unsafe(flag) } {
                    Err(rustix::io::Errno::NOSPC) => {}
                    _ => return Err(failed("root has some left")),
                }
            }
            let flags = libc::CLONE_NEWPID as u64;
            match fork::clone_as_we_are(flags, libc::SIGCHLD, None) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(()),
                Ok(Forked::Child) => fork::leave(0),
                _ => Err(failed("root has a pid namespace left")),
            }
        };
        let unshared: Step = || KINDS.iter().try_for_each(|(_, flag)| unshare(*flag));
        let forked: Step = || match fork::fork(libc::CLONE_NEWPID as u64, None)? {
            Forked::Child => fork::leave(match is_itself() {
                Ok(()) => rustix::process::getpid().as_raw_nonzero().get(),
                Err(_) => 2,
            }),
            Forked::Parent { pidfd } => match exit_code(&pidfd) {
                Some(1) => Ok(()),
                _ => Err(failed("no process 1 was made")),
            },
        };
        let held: Step = || {
            let holder = Holder {
                flags: libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
                ..Holder::default()
            };
            let map = [(0, 100_000, 10)];
            userns::hold(holder, &map, &map).map(drop::<Held>)
        };
        let emptied: Step = || empty::namespace().map(drop);
        // Each of the three makes a mount namespace for a moment.
        let mounted: Step = || {
            crate::mounts::tmpfs("64k")?;
            crate::mounts::clone_tree(std::path::Path::new("/"), true)?;
            crate::mounts::clone_with_propagation(std::path::Path::new("/")).map(drop)
        };
        let steps = [
            refused, is_itself, unshared, is_itself, forked, is_itself, held, emptied, mounted,
            is_itself,
        ];
        assert_eq!(
            where_root_has_none_left(&steps),
            Some(0),
            "the first step that failed"
        );
    }

    #[test]
    fn other_threads_stay_who_they_are() {
        let users = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let users = status.lines().find(|line| line.starts_with("Uid:"));
            users.unwrap().to_owned()
        };
        let (began, is_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let maker = Maker::begin().unwrap();
            began.send(users()).unwrap();
            may_go_on.recv().unwrap();
            maker.end().unwrap();
            users()
        });
        let drawn = is_begun.recv().unwrap();
        let drawn: Vec<&str> = drawn.split('\t').skip(1).collect();
        assert!(
            matches!(drawn[..], ["0", user, "0", "0"] if user != "0"),
            "{drawn:?}"
        );
        let root = "Uid:\t0\t0\t0\t0";
        assert_eq!(users(), root);
        go_on.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), root);
    }
}
