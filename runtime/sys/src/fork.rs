//! Creates processes by clone3(2) without exec, and has calls that change only the calling process.
//!
//! Called by the spawner (for keepers), a keeper (for container processes) and the id-map helper.
//! Invariant: no other thread of the caller allocates during a fork, so that the child finds its
//! allocator unlocked; see `keeper::log` for the threads that a keeper has.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::maker::Maker;
use super::namespaces;

/// `CLONE_INTO_CGROUP`; libc's constant is too narrow for it.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// The two sides of a fork.
pub enum Forked {
    /// In the parent: the child's pidfd and its pid as this process sees it.
    Parent {
        /// The child's pidfd.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

/// Forks with namespaces `flags` (`CLONE_NEW*`). The child gets a copy of everything; only this thread exists in it.
///
/// Errors: as clone3(2): EAGAIN or ENOMEM on an exhausted node, EPERM without privilege.
///
/// The child is created in the unified-tree cgroup `cgroup`, if one is given: cheaper than moving it there.
pub fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    clone(flags, libc::SIGCHLD, cgroup)
}

/// Forks a process whose parent is this process's own parent, which reaps it.
///
/// Errors: as [`fork`]; EINVAL for the first process of a pid namespace.
pub fn fork_sibling(flags: u64) -> io::Result<Forked> {
    // The kernel uses this process's exit signal and refuses an explicit one.
    clone(flags | libc::CLONE_PARENT as u64, 0, None)
}

/// What [`fork_by_clone`] passes as flags: a filter can allow just these.
pub const PLAIN_FORK: u64 = (libc::SIGCHLD | libc::CLONE_PIDFD) as u64;

/// Forks as [`fork`] does without flags, by clone(2): a seccomp filter can read its flags.
///
/// Errors: as clone(2): EAGAIN or ENOMEM on an exhausted node or at the cgroup's limit of processes.
pub fn fork_by_clone() -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: without CLONE_VM the child has its own copy of memory and continues on its copy of this stack, so this is
    // fork(2). The third argument is where the kernel stores the pidfd, on every architecture, and outlives the call;
    // the others are not read without further flags. Other threads: see the module's invariant.
    let pid = unsafe { libc::syscall(libc::SYS_clone, PLAIN_FORK, 0, &raw mut pidfd, 0, 0) };
    // SAFETY: both are of the call above, which nobody else has looked at.
    unsafe { forked(pid, pidfd) }
}

/// Clones; with namespaces among the flags under a user of its own, see [`super::maker`].
fn clone(flags: u64, exit_signal: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    if flags & namespaces::ALL as u64 == 0 {
        return clone_as_we_are(flags, exit_signal, cgroup);
    }
    let maker = Maker::begin()?;
    let forked = clone_as_we_are(flags, exit_signal, cgroup);
    match (maker.end(), forked) {
        (Ok(()), forked) => forked,
        (Err(_), Ok(Forked::Child)) => leave(1),
        (Err(error), Ok(Forked::Parent { pidfd })) => {
            // Nobody knows of it yet.
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            Err(error)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Clones under the present user.
pub(super) fn clone_as_we_are(
    flags: u64,
    exit_signal: i32,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all-zero is its documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(exit_signal.unsigned_abs());
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child has its own copy of memory, so this is fork(2). `args` and `pidfd` outlive
    // the call. Locks held by other threads at this moment would stay held in the child; the module invariant
    // rules them out.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    // SAFETY: both are of the call above, which nobody else has looked at.
    unsafe { forked(pid, pidfd) }
}

/// What a clone that returned `pid` and was told to store a pidfd has done.
///
/// # Safety
/// In the parent the kernel has stored a new descriptor in `pidfd`, and nobody else owns it.
unsafe fn forked(pid: libc::c_long, pidfd: RawFd) -> io::Result<Forked> {
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        _ => {
            // SAFETY: the caller's promise.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pidfd })
        }
    }
}

/// Ends this process at once: no destructors, no exit handlers of the process it was forked from.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Moves `fds` to the numbers 0, 1, 2 … in order and closes every other descriptor.
///
/// Errors: dup2(2) or close_range(2) refused. Whoever holds an `OwnedFd` to another number must forget it.
pub fn keep_only(fds: &[RawFd]) -> io::Result<()> {
    // Lift all above the target range first, so that no target is overwritten while it is still a source.
    let floor = i32::try_from(fds.len()).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    let mut lifted = [-1; 32];
    if fds.len() > lifted.len() {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    for (slot, fd) in lifted.iter_mut().zip(fds) {
        // SAFETY: F_DUPFD takes two integers and touches no memory.
        *slot = check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, floor.max(32)) })?;
    }
    for (target, slot) in (0..floor).zip(lifted) {
        // SAFETY: dup2 takes two integers; whatever `target` named before is meant to be replaced.
        check(unsafe { libc::dup2(slot, target) })?;
    }
    // SAFETY: close_range takes three integers; closing everything above the table is the purpose, and the caller
    // was told that other owners must be forgotten.
    check(unsafe { libc::syscall(libc::SYS_close_range, floor, u32::MAX, 0) as i32 }).map(drop)
}

/// Marks every descriptor from `first` on to be closed by execve(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with CLOSE_RANGE_CLOEXEC closes nothing now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    check(result as i32).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes ownership of descriptor `fd` that [`keep_only`] put at its number.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: keep_only made this number refer to an open descriptor of this process, and each number of the table
    // is adopted once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The pid of the process behind `pidfd`, in the pid namespace of the mounted `/proc`.
///
/// Errors: `/proc` is not readable; ESRCH when the process is gone.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok());
    match pid {
        Some(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Where the kernel keeps this process's arguments; the same in every fork of it.
static ARGUMENTS: std::sync::OnceLock<(usize, usize)> = std::sync::OnceLock::new();

fn arguments() -> (usize, usize) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    // Fields 48 and 49 of stat are arg_start and arg_end; the text after the name begins with field 3.
    let mut fields = fields.split(' ').skip(45).map(|f| f.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

/// Names this process, by the first 15 ASCII characters of `name`, in `/proc/PID/comm`. Allocates nothing.
pub fn set_name(name: &str) {
    // The last byte stays the NUL that ends the name.
    let mut comm = [0; 16];
    let ascii = name.bytes().filter(u8::is_ascii);
    for (slot, byte) in comm[..15].iter_mut().zip(ascii) {
        *slot = byte;
    }
    if let Ok(name) = CStr::from_bytes_until_nul(&comm) {
        let _ = rustix::thread::set_name(name);
    }
}

/// Finds where [`set_title`] writes. A process with threads calls this before it forks a child that sets its title, so that
/// the child allocates nothing.
pub(super) fn find_title() {
    let _ = ARGUMENTS.get_or_init(arguments);
}

/// Names this process `title` in `ps` and in `/proc/PID/cmdline`, as far as the original arguments leave room. The first
/// call allocates; a process inherits what an earlier call, or `find_title`, found.
pub fn set_title(title: &str) {
    set_name(title);
    let (start, end) = *ARGUMENTS.get_or_init(arguments);
    if start == 0 || end <= start {
        return;
    }
    // SAFETY: arg_start..arg_end is the argument area that the kernel mapped writable for this process; std copied
    // the arguments out of it before main, and nothing else reads it.
    let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    let taken = title.len().min(area.len() - 1);
    area.fill(0);
    area[..taken].copy_from_slice(&title.as_bytes()[..taken]);
}

/// Runs the ignored test `name` of this program in a process of its own with one thread: what that is forked into may
/// allocate, and nobody else forks it or writes to its memory meanwhile.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(crate) fn test_alone(name: &str) {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--test-threads=1", name])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(
        alone.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
