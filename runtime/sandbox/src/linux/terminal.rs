//! Opens a terminal for an exec's process.
//!
//! Called once the process is inside the container's namespaces and leads its own session.
//! Invariant: it uses only the terminal multiplexer of a devpts, because the container may have replaced `/dev/pts`.
//! The terminal of a container's first process is made with its `/dev`.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, fstatfs, makedev, openat2,
};

use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys as sys;

/// Source: linux/magic.h, DEVPTS_SUPER_MAGIC.
const DEVPTS: i64 = 0x1cd1;

/// Opens a terminal of the container's devpts for user `uid` of the container and makes it the standard streams and the
/// controlling terminal. Returns its controlling side, non-blocking.
///
/// Errors: there is no devpts at `/dev/pts` of the container.
pub fn join_terminal(uid: u32) -> Result<OwnedFd> {
    let what = || "open a terminal at the container's /dev/pts".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let control = openat2(CWD, c"/dev/pts/ptmx", flags, Mode::empty(), resolve).during(what)?;
    let found = fstat(&control).during(what)?;
    let is_multiplexer = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && found.st_rdev == makedev(5, 2)
        && fstatfs(&control).during(what)?.f_type == DEVPTS;
    if !is_multiplexer {
        let text = format!("{}: what lies there makes no terminals", what());
        return Err(Error::new(Kind::Invalid, text));
    }
    let side = sys::terminal::other_side(control.as_fd()).during(what)?;
    // Its user may reopen it, as /dev/stdout or by its name.
    fchown(&side, Some(Uid::from_raw(uid)), None).during(what)?;
    sys::terminal::become_controlled_by(side.as_fd()).during(what)?;
    Ok(control)
}
