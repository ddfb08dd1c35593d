//! The effective user under whom namespaces are made: one that is drawn anew each time, so that no container can use up
//! what the kernel lets that user have.
//!
//! Called by [`super::namespaces`], [`super::fork`], [`super::userns`] and [`super::mounts`] around the call that makes them.
//!
//! The kernel limits the namespaces of each effective user (`user.max_net_namespaces` and its like), root's too. One that
//! is made inside a user namespace counts at every level above it as well, for the user who made that one. A container
//! of the node's root that makes user namespaces counts as we would, and so could take all that root may have: no pod
//! would start any more. With CAP_SETUID, which containers have by default, it becomes any user that it can name, so
//! ours must be one that nobody can name.
//! Invariants: only the effective user changes, not that of files; capabilities are kept; the thread is itself again,
//! and not dumpable, when [`Maker::end`] has returned. Nothing is allocated, so a process that was just forked may call it.
//! Not here: which namespaces.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{
    CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits,
};

use super::dump;

/// The users that are drawn: from here on, 2^30 of them. Kubernetes' `runAsUser` ends below; who is one of them all the
/// same, by setuid(2) or in the block of host ids of a late pod, is drawn once in a billion times.
const FIRST: u32 = 0xc000_0000;
/// The last ids, of which some mean "none".
const SPARED: u32 = 16;

/// What the calling thread was before; [`Maker::end`] makes it so again.
#[must_use]
pub(crate) struct Maker(Option<Before>);

struct Before {
    effective: u32,
    files: u32,
    bits: CapabilitiesSecureBits,
}

impl Maker {
    /// Makes the calling thread, and no other, a user that nobody else is.
    ///
    /// In a user namespace that does not have the drawn id nothing changes: what is made there counts for the user who
    /// made that. Errors: no right to change the user.
    pub(crate) fn begin() -> io::Result<Self> {
        let before = Before {
            effective: effective_user(),
            files: set_file_user(None),
            bits: capabilities_secure_bits()?,
        };
        let kept = before.bits | CapabilitiesSecureBits::NO_SETUID_FIXUP;
        set_capabilities_secure_bits(kept)?;
        match set_effective_user(draw()?) {
            Ok(()) => {
                set_file_user(Some(before.files));
                dump::forbid()?;
                Ok(Self(Some(before)))
            }
            Err(error) => {
                set_capabilities_secure_bits(before.bits)?;
                match error.raw_os_error() {
                    Some(libc::EINVAL) => Ok(Self(None)),
                    _ => Err(error),
                }
            }
        }
    }

    /// As [`Maker::begin`], but a thread that may not change its user stays who it is.
    pub(crate) fn begin_if_allowed() -> io::Result<Self> {
        match Self::begin() {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Self(None)),
            begun => begun,
        }
    }

    /// Undoes [`Maker::begin`]; the child of a fork calls it, too.
    ///
    /// Errors: the kernel is out of memory; the thread must not go on.
    pub(crate) fn end(self) -> io::Result<()> {
        let Some(before) = self.0 else {
            return Ok(());
        };
        set_effective_user(before.effective)?;
        set_file_user(Some(before.files));
        set_capabilities_secure_bits(before.bits)?;
        dump::forbid()
    }
}

/// A user from the range above.
fn draw() -> io::Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let most = u32::MAX - FIRST - SPARED;
    Ok(FIRST + u32::from_ne_bytes(bytes) % most)
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Sets the effective user of this thread; real and saved user stay, so that the way back is open.
fn set_effective_user(user: u32) -> io::Result<()> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: takes three integers and, as a raw call, changes only this thread; nothing in memory depends on it.
    match unsafe { libc::syscall(libc::SYS_setresuid, KEEP, user, KEEP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the user as whom this thread uses files, if one is given. Returns the former one.
fn set_file_user(user: Option<u32>) -> u32 {
    // SAFETY: takes one integer and changes only this thread; an id that does not exist changes nothing.
    let former = unsafe { libc::syscall(libc::SYS_setfsuid, user.unwrap_or(u32::MAX)) };
    // The kernel returns an id, which has 32 bits.
    former as u32
}
