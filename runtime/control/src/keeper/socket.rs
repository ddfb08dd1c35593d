//! The control socket of a keeper: the daemon makes it before the keeper is forked, and connects to it by its path.
//!
//! Invariant: a path of any length works. It must not know what is said over the socket.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_spec::error::{Context as _, Result};

/// Makes a keeper's control socket at `path` (0600) and replaces a stale one.
///
/// Errors: the directory is missing or not writable.
pub fn bind_control(path: &Path) -> Result<OwnedFd> {
    let what = || format!("make control socket {}", path.display());
    let _ = std::fs::remove_file(path);
    let (_directory, short) = short(path).during(what)?;
    let listener = std::os::unix::net::UnixListener::bind(short).during(what)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .during(what)?;
    listener.set_nonblocking(true).during(what)?;
    Ok(listener.into())
}

/// A name for the socket `path` that fits a socket address (107 bytes) however long the run directory's path is: it
/// goes through the open directory, which must stay open while the name is used.
pub(super) fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags, open};
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let by_number = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    Ok((directory, by_number.join(name)))
}
