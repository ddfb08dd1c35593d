//! Clients that are attached to one stream of a container: each gets the same bytes as the log, raw, through a pipe.
//!
//! The keeper puts a pipe's write end into a free slot of a [`PipeSlots`]; then the log thread owns it. Like that
//! thread, everything here except [`PipeSlots::add`] makes system calls only: it never allocates, locks or panics.
//! Invariants: a client that reads gets every byte: one that lags behind blocks the container, as a full pipe would,
//! and one that reads nothing for [`TIMEOUT_MS`] is dropped. An exited container waits for no client: the rest of its
//! output is written to the client's pipe, which grows for that.
//! It must not know about lines or files.

use std::io;
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use super::line::Pages;

/// Most clients of one stream at a time.
pub(super) const MAX_CLIENTS: usize = 16;
/// How long a client may read nothing before it is dropped, in milliseconds.
const TIMEOUT_MS: u64 = 10_000;
/// How much a pipe grows for the rest of an exited container's output, in bytes: more than its own pipe and one chunk
/// hold.
const GROWTH: i32 = 128 * 1024;
const FREE: RawFd = -1;

/// Slots where the keeper puts new clients of one stream.
pub(super) struct PipeSlots([AtomicI32; MAX_CLIENTS]);

impl PipeSlots {
    pub(super) fn new() -> Self {
        Self([const { AtomicI32::new(FREE) }; MAX_CLIENTS])
    }

    /// Adds a pipe's write end; `false` if there is no free slot or the pipe cannot be used.
    pub(super) fn add(&self, pipe: OwnedFd) -> bool {
        if rustix::io::ioctl_fionbio(pipe.as_fd(), true).is_err() {
            return false;
        }
        let pipe = pipe.into_raw_fd();
        let put = |slot: &AtomicI32| {
            slot.compare_exchange(FREE, pipe, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        if self.0.iter().any(put) {
            return true;
        }
        drop(coracle_sys::fork::adopt(pipe));
        false
    }

    fn at(&self, slot: usize) -> RawFd {
        self.0[slot].load(Ordering::Acquire)
    }

    /// Closes every client's pipe: the output has ended.
    pub(super) fn close(&self) {
        for slot in &self.0 {
            let pipe = slot.swap(FREE, Ordering::AcqRel);
            if pipe != FREE {
                // SAFETY: the number came from `add`, which gave it away; the swap makes sure that it is closed once.
                unsafe { libc::close(pipe) };
            }
        }
    }
}

/// The log thread's side of a [`PipeSlots`].
pub(super) struct AttachedClients {
    /// The last chunk of output, while some client has not read it all; allocated for the first client.
    chunk: Option<Pages>,
    held: usize,
    /// The pipe that each slot held at the last check.
    known: [RawFd; MAX_CLIENTS],
    /// How much of the chunk each client has read.
    sent: [usize; MAX_CLIENTS],
    /// Clients whose pipe was grown for the rest of an exited container's output; it grows once.
    grown: [bool; MAX_CLIENTS],
    /// Since when no client has read anything, in milliseconds of the monotonic clock.
    stuck_since: u64,
}

impl AttachedClients {
    pub(super) fn new() -> Self {
        Self {
            chunk: None,
            held: 0,
            known: [FREE; MAX_CLIENTS],
            sent: [0; MAX_CLIENTS],
            grown: [false; MAX_CLIENTS],
            stuck_since: 0,
        }
    }

    /// Finds new clients; they get the output from now on.
    fn refresh(&mut self, slots: &PipeSlots) {
        for slot in 0..MAX_CLIENTS {
            let pipe = slots.at(slot);
            if pipe != self.known[slot] {
                self.known[slot] = pipe;
                self.sent[slot] = self.held;
                self.grown[slot] = false;
            }
        }
    }

    fn is_behind(&self, slot: usize) -> bool {
        self.known[slot] != FREE && self.sent[slot] < self.held
    }

    /// Whether some client has not read the last chunk yet. Then the next one must wait.
    pub(super) fn is_pending(&mut self, slots: &PipeSlots) -> bool {
        self.refresh(slots);
        (0..MAX_CLIENTS).any(|slot| self.is_behind(slot))
    }

    /// Milliseconds until [`Self::expire`] drops a client.
    pub(super) fn timeout_ms(&self) -> i32 {
        let left = (self.stuck_since + TIMEOUT_MS).saturating_sub(now_ms());
        i32::try_from(left).unwrap_or(i32::MAX).max(1)
    }

    /// Writes a chunk of output to all clients. Call it only when nothing is pending.
    pub(super) fn feed(&mut self, slots: &PipeSlots, bytes: &[u8], ending: bool) {
        self.refresh(slots);
        if self.known.iter().all(|pipe| *pipe == FREE) {
            return;
        }
        if self.chunk.is_none() {
            // Out of memory: close the clients' pipes.
            match Pages::new() {
                Ok(pages) => self.chunk = Some(pages),
                Err(_) => return slots.close(),
            }
        }
        let Some(chunk) = &mut self.chunk else { return };
        let held = bytes.len().min(chunk.len());
        chunk[..held].copy_from_slice(&bytes[..held]);
        (self.held, self.sent) = (held, [0; MAX_CLIENTS]);
        self.stuck_since = now_ms();
        self.push(slots, ending);
    }

    /// Writes the rest of the chunk to clients that have not read it. If the container is `ending`, all of it, growing
    /// the pipe if needed.
    pub(super) fn push(&mut self, slots: &PipeSlots, ending: bool) {
        for slot in 0..MAX_CLIENTS {
            while self.is_behind(slot) {
                let Some(chunk) = &self.chunk else { return };
                let rest = &chunk[self.sent[slot]..self.held];
                let pipe = self.known[slot];
                // SAFETY: `rest` is readable memory of this thread.
                let put = unsafe { libc::write(pipe, rest.as_ptr().cast(), rest.len()) };
                if put > 0 {
                    self.sent[slot] += put.unsigned_abs();
                    self.stuck_since = now_ms();
                    continue;
                }
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) if !ending => break,
                    Some(libc::EAGAIN) if !self.grown[slot] && grow(pipe) => {
                        self.grown[slot] = true;
                    }
                    _ => self.drop_one(slots, slot),
                }
            }
        }
    }

    /// Drops clients that have read nothing for too long.
    pub(super) fn expire(&mut self, slots: &PipeSlots) {
        if now_ms() < self.stuck_since + TIMEOUT_MS {
            return;
        }
        for slot in 0..MAX_CLIENTS {
            if self.is_behind(slot) {
                self.drop_one(slots, slot);
            }
        }
    }

    fn drop_one(&mut self, slots: &PipeSlots, slot: usize) {
        let pipe = std::mem::replace(&mut self.known[slot], FREE);
        slots.0[slot].store(FREE, Ordering::Release);
        // SAFETY: the thread owns what is in the slots and has just taken it out.
        unsafe { libc::close(pipe) };
    }

    /// Fills the poll set: space in the pipes of clients that lag, and clients that closed theirs.
    pub(super) fn watch(&mut self, slots: &PipeSlots, fds: &mut [libc::pollfd]) {
        self.refresh(slots);
        for (slot, fd) in fds.iter_mut().enumerate().take(MAX_CLIENTS) {
            let events = if self.is_behind(slot) {
                libc::POLLOUT
            } else {
                0
            };
            *fd = libc::pollfd {
                fd: self.known[slot],
                events,
                revents: 0,
            };
        }
    }

    /// Handles the result of poll(2).
    pub(super) fn handle_poll(&mut self, slots: &PipeSlots, fds: &[libc::pollfd], ending: bool) {
        for (slot, fd) in fds.iter().enumerate().take(MAX_CLIENTS) {
            let is_gone = fd.revents & (libc::POLLERR | libc::POLLNVAL) != 0;
            if is_gone && fd.fd == self.known[slot] && fd.fd != FREE {
                self.drop_one(slots, slot);
            }
        }
        self.push(slots, ending);
    }
}

/// Grows a pipe; `false` if the kernel refuses.
fn grow(pipe: RawFd) -> bool {
    // SAFETY: fcntl(2) with integers on a descriptor that this thread owns.
    unsafe {
        let size = libc::fcntl(pipe, libc::F_GETPIPE_SZ);
        size > 0 && libc::fcntl(pipe, libc::F_SETPIPE_SZ, size + GROWTH) > size
    }
}

/// The monotonic clock in milliseconds.
fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use super::super::tests::wait_for;
    use super::super::{LogThread, OutputStream};
    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (read.into(), write)
    }

    /// A log thread without a file, and the write end of its pipe.
    fn logged() -> (LogThread, File) {
        let (out, program) = pipe();
        let (err, _) = pipe();
        let log = LogThread::start(out.into(), Some(err.into()), None).unwrap();
        (log, program.into())
    }

    fn joined(log: &LogThread) -> File {
        let (client, attach) = pipe();
        assert!(log.attach(OutputStream::Out, attach));
        client
    }

    fn end(log: LogThread) {
        wait_for(|| log.is_finished());
        log.join();
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn every_client_gets_every_byte_from_when_it_came() {
        let (log, mut program) = logged();
        let mut first = joined(&log);
        program.write_all(b"one").unwrap();
        let mut seen = [0; 3];
        first.read_exact(&mut seen).unwrap();
        let mut second = joined(&log);
        program.write_all(b" two").unwrap();
        drop(program);
        let (mut of_first, mut of_second) = (String::new(), String::new());
        first.read_to_string(&mut of_first).unwrap();
        second.read_to_string(&mut of_second).unwrap();
        assert_eq!((of_first.as_str(), of_second.as_str()), (" two", " two"));
        end(log);
    }

    #[test]
    fn a_slow_client_loses_nothing_and_holds_the_program_back() {
        let (log, mut program) = logged();
        let mut client = joined(&log);
        let sent = pattern(1 << 20);
        let writer = std::thread::spawn(move || program.write_all(&sent).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished(), "1 MiB went where nobody read");
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).unwrap();
        assert!(seen == pattern(1 << 20));
        writer.join().unwrap();
        end(log);
    }

    #[test]
    fn the_rest_of_an_ended_program_is_put_into_the_clients_pipe() {
        let (log, mut program) = logged();
        let mut client = joined(&log);
        let sent = pattern(120 * 1024);
        // As much as both pipes and the current chunk hold: the program exits before anybody reads.
        program.write_all(&sent).unwrap();
        log.close();
        drop(program);
        end(log);
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).unwrap();
        assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
    }

    #[test]
    fn a_closed_client_frees_its_slot_and_clients_are_limited() {
        let (log, mut program) = logged();
        let clients: Vec<File> = (0..MAX_CLIENTS).map(|_| joined(&log)).collect();
        assert!(!log.attach(OutputStream::Out, pipe().1));
        drop(clients);
        wait_for(|| log.attach(OutputStream::Out, pipe().1));
        program.write_all(b"nobody reads").unwrap();
        drop(program);
        end(log);
    }
}
