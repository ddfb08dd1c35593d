//! What keepers and the spawner say of themselves, on the standard error that they inherited from the daemon.
//!
//! Called by: the keeper's event loop, the spawner's. Invariants: it does not wait for whoever reads standard error (the
//! daemon may be gone, the journal's disk may be stuck), so a line may be lost; lines of others are not cut in two by it.
//! A regular file is the exception: the kernel writes to it at once or not at all only on some file systems.
//! Must not know: containers, requests.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use coracle_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::SendFlags;

/// The longest line; a pipe takes as much as a whole or not at all. Bytes, PIPE_BUF.
const MAX_BYTES: usize = 4096;
/// The place of a file where it is written next, as of pwritev2(2).
const HERE: u64 = u64::MAX;

/// Writes `text` as one line, if that is possible at once.
pub(crate) fn say(text: &str) {
    let room = MAX_BYTES - "coracle: \n".len();
    let text = &text[..text.floor_char_boundary(room)];
    write(sys::standard(2), format!("coracle: {text}\n").as_bytes());
}

fn write(out: BorrowedFd<'_>, line: &[u8]) {
    match rustix::net::send(out, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Err(Errno::NOTSOCK) => {}
        _ => return,
    }
    // Others write to the same pipe, so that a look at its room would not be enough.
    let written = rustix::io::pwritev2(out, &[IoSlice::new(line)], HERE, ReadWriteFlags::NOWAIT);
    if !matches!(written, Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) {
        return;
    }
    let mut fds = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec::default())) == Ok(1)
        && fds[0].revents().contains(PollFlags::OUT)
    {
        let _ = rustix::io::write(out, line);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _};
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Writes many lines to `out`; panics unless that ends while nobody reads.
    fn flood(out: OwnedFd) {
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..4096 {
                write(out.as_fd(), &[b'x'; 512]);
            }
            done.send(out).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn nobody_waits_for_a_reader_that_stands_still() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        flood(writer.into());
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!((4096..=1 << 20).contains(&read.len()), "{}", read.len());
        let (mut reader, writer) = UnixStream::pair().unwrap();
        flood(writer.into());
        read.clear();
        reader.read_to_end(&mut read).unwrap();
        assert!((4096..=1 << 20).contains(&read.len()), "{}", read.len());
    }

    #[test]
    fn a_file_has_every_line() {
        let memory = rustix::fs::memfd_create("own-log", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(memory.unwrap());
        flood(file.try_clone().unwrap().into());
        file.rewind().unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 4096 * 512);
    }
}
