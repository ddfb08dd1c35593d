//! Raw system calls that try what cannot be read from /proc.
//!
//! Called by `kernel` and `directories`; each function tries one feature of the kernel and returns the result.
//! Invariant: nothing outlives the call; children are killed and reaped, mounts are detached ones that end with their
//! descriptor, interfaces live in a namespace that ends with its thread. Must not know: what the results mean.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Opens `/` by openat2, which is how every path from an image is opened.
pub(super) fn openat2() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(
        rustix::fs::CWD,
        c"/",
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    Ok(())
}

/// Opens a pidfd of this process.
pub(super) fn pidfd() -> io::Result<()> {
    rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(())
}

/// A process in a user namespace of its own, asleep until this value is dropped.
pub(super) struct UserNamespace {
    pid: Pid,
}

impl UserNamespace {
    /// Makes the namespace and maps its ids 0 to `count - 1` to the host's from `base` on.
    pub(super) fn new(base: u32, count: u32) -> io::Result<Self> {
        let namespace = Self { pid: sleeper()? };
        let directory = format!("/proc/{}", namespace.pid);
        fs::write(format!("{directory}/uid_map"), format!("0 {base} {count}"))?;
        fs::write(format!("{directory}/gid_map"), format!("0 {base} {count}"))?;
        Ok(namespace)
    }

    fn open(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/ns/user", self.pid))
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        // The child is ours and unreaped, so the pid is still its own.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

/// A child in a new user namespace that only waits to be killed.
#[allow(unsafe_code, reason = "clone has no safe wrapper")]
fn sleeper() -> io::Result<Pid> {
    // With CLONE_FILES the child has no copies of our descriptors: what we close is closed.
    let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of all memory and may go on
    // from here; it shares the descriptor table and does not touch it. Other threads of ours do not exist
    // in it, so it may only make async-signal-safe calls: it makes two, prctl and pause, and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    if pid == 0 {
        // SAFETY: both are plain system calls on integers; the child dies with its parent, at the latest.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // SAFETY: takes nothing and touches no memory.
            unsafe { libc::pause() };
        }
    }
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Makes a detached, idmapped copy of the mount that `directory` is on, and lets it go.
#[allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]
pub(super) fn idmapped_mount(directory: &Path, namespace: &UserNamespace) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let tree = rustix::mount::open_tree(
        rustix::fs::CWD,
        directory,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let user = namespace.open()?;
    let userns = u64::try_from(user.as_raw_fd()).map_err(io::Error::other)?;
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns,
    };
    // SAFETY: the path is a static C string; `attr` lives through the call, is laid out as the kernel's
    // mount_attr and its size is passed with it; both descriptors are open until the end of the function.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes a veth pair in a network namespace that ends with the thread it is made on.
pub(super) fn veth() -> io::Result<()> {
    let tried = thread::spawn(|| {
        own_network()?;
        make_link("veth")
    });
    tried
        .join()
        .map_err(|_| io::Error::other("the probing thread ended early"))?
}

/// Moves the calling thread, which must be about to end, into a new network namespace.
#[allow(unsafe_code, reason = "unshare of one thread is unsafe in general")]
fn own_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes only which namespace this thread's later sockets belong to; memory
    // and descriptors stay shared, so no other code of the process can notice.
    let answer = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn make_link(kind: &str) -> io::Result<()> {
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // protocol 0 is NETLINK_ROUTE
    )?;
    rustix::net::send(&socket, &new_link(kind), SendFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let (got, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // nlmsghdr is 16 bytes; an NLMSG_ERROR goes on with a negated errno, 0 for success.
    match answer[..got]
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("netlink answered with half a message")),
    }
}

/// An acknowledged RTM_NEWLINK for one link of `kind`, named by the kernel.
fn new_link(kind: &str) -> Vec<u8> {
    let attribute = |code: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), code.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let information = attribute(libc::IFLA_INFO_KIND, kind.as_bytes());
    let mut body = vec![0_u8; 16]; // struct ifinfomsg, all zero: the kernel chooses
    body.extend(attribute(libc::IFLA_LINKINFO, &information));
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: the kernel fills it in
    message.extend(body);
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_sleeper_has_the_requested_ids_and_ends_with_its_namespace() {
        let namespace = UserNamespace::new(1_879_048_192, 65_536).unwrap();
        let directory = format!("/proc/{}", namespace.pid);
        let map = fs::read_to_string(format!("{directory}/uid_map")).unwrap();
        assert_eq!(
            map.split_whitespace().collect::<Vec<_>>(),
            ["0", "1879048192", "65536"]
        );
        drop(namespace);
        assert!(!Path::new(&directory).exists());
    }

    #[test]
    fn a_kind_of_link_the_kernel_does_not_know_is_an_error() {
        let tried = thread::spawn(|| own_network().and_then(|()| make_link("no-such-kind")));
        let error = tried.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        veth().unwrap();
    }

    #[test]
    fn a_file_system_that_cannot_be_idmapped_is_an_error() {
        let namespace = UserNamespace::new(1_879_048_192, 65_536).unwrap();
        assert!(idmapped_mount(Path::new("/proc"), &namespace).is_err());
    }
}
