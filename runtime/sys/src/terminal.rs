//! Pseudo terminals: the other side of one, the controlling terminal of a session, the window's size.
//!
//! Called by `sandbox` when it builds a container, by the keeper for a resize, and by commands that print tables.
//! Invariant: a terminal of a container is never opened by a path that the container could have changed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Unlocks and opens the side of a terminal that programs use; `control` is its controlling side.
pub fn other_side(control: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int from the pointer, which lives until the call returns; TIOCGPTPEER takes open
    // flags by value and returns a new descriptor, which nobody else owns.
    unsafe {
        check(libc::ioctl(
            control.as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const unlocked,
        ))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let side = check(libc::ioctl(control.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        Ok(OwnedFd::from_raw_fd(side))
    }
}

/// A new terminal of the devpts in this mount namespace: its controlling side and the other one.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let control = open("/dev/ptmx", flags, Mode::empty())?;
    let side = other_side(control.as_fd())?;
    Ok((control, side))
}

/// Sets a terminal's window size; its foreground programs get SIGWINCH. `control` is either side.
pub fn resize(control: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which lives until the call returns.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// How many columns the terminal has; `None` if it is none, or says nothing.
pub fn columns(terminal: &impl AsFd) -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which lives until the call returns.
    check(unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// Makes `side` the controlling terminal of this process's session, which it leads, and its standard streams.
pub fn become_controlled_by(side: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes integers.
    check(unsafe { libc::ioctl(side.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    (0..3).try_for_each(|stream| replace_stream(side, stream))
}

/// Makes `file` standard stream `stream` (0 to 2) of this process.
pub fn replace_stream(file: BorrowedFd<'_>, stream: i32) -> io::Result<()> {
    debug_assert!((0..=2).contains(&stream));
    // SAFETY: dup2 takes integers; a standard stream is meant to be replaced.
    check(unsafe { libc::dup2(file.as_raw_fd(), stream) }).map(drop)
}
