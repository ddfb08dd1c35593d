//! Landlock: restricts files, TCP ports and signals for the calling thread and its later children.
//!
//! Called by `sandbox::landlock`, which knows what a container needs. Source: linux/landlock.h and landlock(7).
//! Invariants: a ruleset only restricts, permanently; only rights that this kernel knows are handled.
//! Not here: which paths and ports.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Rights on files and directories, as bits of one set; those without a version are of the first. No container gets
/// the others: executing a file, creating a device, sending a device an ioctl.
pub mod files {
    /// Open a file for writing.
    pub const WRITE_FILE: u64 = 1 << 1;
    /// Open a file for reading.
    pub const READ_FILE: u64 = 1 << 2;
    /// List a directory.
    pub const READ_DIRECTORY: u64 = 1 << 3;
    /// Remove an empty directory, or rename it away.
    pub const REMOVE_DIRECTORY: u64 = 1 << 4;
    /// Remove a file, or rename it away.
    pub const REMOVE_FILE: u64 = 1 << 5;
    /// Make a directory.
    pub const MAKE_DIRECTORY: u64 = 1 << 7;
    /// Make a regular file.
    pub const MAKE_FILE: u64 = 1 << 8;
    /// Make a socket.
    pub const MAKE_SOCKET: u64 = 1 << 9;
    /// Make a FIFO.
    pub const MAKE_FIFO: u64 = 1 << 10;
    /// Make a symbolic link.
    pub const MAKE_SYMLINK: u64 = 1 << 12;
    /// Link or rename to another directory. From version 2 on; without it version 1 refuses both with EXDEV.
    pub const REFER: u64 = 1 << 13;
    /// Shorten a file. From version 3 on.
    pub const TRUNCATE: u64 = 1 << 14;

    /// Every right that `version` knows: 13 in version 1, then REFER (2), TRUNCATE (3) and ioctl of devices (5).
    #[must_use]
    pub fn all(version: u32) -> u64 {
        let count = match version {
            0 => 0,
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        (1 << count) - 1
    }
}

/// Rights over TCP ports. From version 4 on.
pub mod ports {
    /// Bind a socket to the port.
    pub const BIND: u64 = 1;
    /// Connect a socket to the port.
    pub const CONNECT: u64 = 1 << 1;
}

/// What can be kept inside the domain. From version 6 on.
pub mod scopes {
    /// Connections to abstract unix sockets.
    pub const ABSTRACT_SOCKETS: u64 = 1;
    /// Signals.
    pub const SIGNALS: u64 = 1 << 1;
}

/// The rights that a ruleset denies unless a rule allows them. Layout: `struct landlock_ruleset_attr`; a kernel that
/// knows fewer fields accepts zeros for the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Of [`files`].
    pub files: u64,
    /// Of [`ports`].
    pub ports: u64,
    /// Of [`scopes`].
    pub scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: RawFd,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed: u64,
    port: u64,
}

const CREATE_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_uint = 1;
const RULE_NET_PORT: libc::c_uint = 2;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The version of the interface that this kernel has, 1 or more.
///
/// Errors: ENOSYS when it was built without Landlock, EOPNOTSUPP when it was booted without.
pub fn version() -> io::Result<u32> {
    // SAFETY: with a null pointer, size 0 and the VERSION flag the call reads no memory and makes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            CREATE_VERSION,
        )
    };
    u32::try_from(check(answer)?).map_err(io::Error::other)
}

/// A ruleset; it takes effect at [`Ruleset::restrict_self`].
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// A ruleset without rules: it denies all handled rights. Errors: EINVAL for a right that the kernel does not
    /// know, ENOMSG when no right is handled.
    pub fn new(handled: Handled) -> io::Result<Self> {
        // SAFETY: `handled` has the layout of landlock_ruleset_attr, outlives the call, and its size goes with it.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const handled,
                size_of::<Handled>(),
                0,
            )
        };
        let fd = RawFd::try_from(check(answer)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Allows `rights` for `place` and, if it is a directory, for everything below it.
    ///
    /// Errors: EINVAL for rights that are not handled, or that a file cannot have; EBADFD for a file of no mount.
    pub fn allow_beneath(&self, place: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
        let rule = PathBeneath {
            allowed: rights,
            parent: place.as_raw_fd(),
        };
        self.add(RULE_PATH_BENEATH, (&raw const rule).cast())
    }

    /// Allows `rights` for one TCP port. Errors: EINVAL for rights that are not handled.
    pub fn allow_port(&self, port: u16, rights: u64) -> io::Result<()> {
        let rule = NetPort {
            allowed: rights,
            port: port.into(),
        };
        self.add(RULE_NET_PORT, (&raw const rule).cast())
    }

    fn add(&self, kind: libc::c_uint, rule: *const libc::c_void) -> io::Result<()> {
        // SAFETY: both callers pass a rule of the layout that `kind` has, which lives until the call returns.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                kind,
                rule,
                0,
            )
        };
        check(answer).map(drop)
    }

    /// Restricts the calling thread, and all threads and processes that it creates, permanently.
    ///
    /// Errors: EPERM without no_new_privs, E2BIG when it has 16 rulesets already.
    pub fn restrict_self(self) -> io::Result<()> {
        // SAFETY: the call takes a descriptor and flags; it changes this thread's credentials and no memory.
        let answer =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        check(answer).map(drop)
    }
}
