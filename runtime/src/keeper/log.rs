//! One container's CRI log: reads its output pipes, cuts lines, adds timestamps, writes them to the log file.
//!
//! The keeper starts one thread per container, because a write to a stalled disk or FUSE file blocks its thread, and
//! must block only that log. The keeper forks while such threads exist, so they follow one rule: from its begin, which
//! [`await_begun`] waits for before each fork, to the call of [`LogThread::join`] a log thread makes system calls only. It
//! never allocates, locks or panics, so a fork finds every lock of the process free.
//! Invariants: a line reaches the file in one write(2), as `RFC3339Nano stream P|F text`; text longer than 16 KiB is
//! cut into `P` pieces; a rotation loses nothing and repeats nothing; a full disk drops lines, never the container; who holds
//! the pipe of a container that has ended writes at most [`REST`] bytes more into its log, which nobody rotates any more.
//! Attached clients get the same bytes from the same thread ([`attach`]).
//! It must not know when a container ends.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

mod attach;
mod beginning;
mod line;
mod wake;
pub(crate) mod write;

use attach::{AttachedClients, MAX_CLIENTS, PipeSlots};
pub use beginning::await_begun;
use line::{Lines, Stamp};
use wake::{event, signal};
use write::write_line;

/// Most text bytes of one log line, the same as containerd's and CRI-O's.
pub const MAX_TEXT: usize = 16 * 1024;
/// Most bytes of a stream that are read once its container has ended: the most that a pipe holds, unless root made it larger.
const REST: usize = 1 << 20;
/// Stack of a log thread; its buffers are not on it.
const STACK_BYTES: usize = 64 * 1024;

/// State that keeper and log thread share.
struct Shared {
    /// Next log file, or -1. Whoever swaps a number out owns the descriptor.
    next: AtomicI32,
    /// The thread is taking [`Self::next`].
    switching: AtomicBool,
    /// Wakes the thread.
    wake: OwnedFd,
    /// Wakes the keeper: the thread switched to a new file, or both pipes have ended.
    done: OwnedFd,
    /// Both pipes have ended and all output is written.
    finished: AtomicBool,
    /// Stop waiting for output.
    closing: AtomicBool,
    /// The thread may exit: the keeper is joining it and does not fork.
    leaving: AtomicBool,
    /// Lines lost to a full or broken disk.
    dropped: AtomicU64,
    /// Clients of standard output and of standard error.
    client_pipes: [PipeSlots; 2],
}

/// A stream that clients can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Out,
    /// Standard error.
    Err,
}

/// The thread that writes one container's log. Without [`LogThread::join`] it goes on, and what it uses stays.
pub struct LogThread {
    thread: libc::pthread_t,
    /// The thread uses it until it is joined.
    shared: ManuallyDrop<Box<Shared>>,
    work: *mut Work,
}

struct Work {
    shared: *const Shared,
    /// Standard output and error.
    streams: [Stream; 2],
    file: RawFd,
}

/// One of a container's two output streams.
struct Stream {
    /// Its pipe or terminal; -1 once it has ended.
    fd: RawFd,
    lines: Lines,
    clients: AttachedClients,
    /// What may be read once its container has ended.
    rest: usize,
}

impl Stream {
    fn new(name: &'static [u8; 6], fd: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &fd {
            // A container that reads its own output must not make the log's thread wait.
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self {
            lines: Lines::new(name)?,
            clients: AttachedClients::new(),
            rest: REST,
            fd: fd.map_or(-1, IntoRawFd::into_raw_fd),
        })
    }
}

impl LogThread {
    /// Starts the thread on the read ends of a container's output pipes, or on a terminal alone, and makes them
    /// non-blocking. Without `file` the output is discarded.
    ///
    /// Whoever forks afterwards calls [`await_begun`] first. Errors: no memory, descriptors or threads left.
    pub fn start(out: OwnedFd, err: Option<OwnedFd>, file: Option<File>) -> io::Result<Self> {
        let shared = Box::new(Shared {
            next: AtomicI32::new(-1),
            switching: AtomicBool::new(false),
            wake: event()?,
            done: event()?,
            finished: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            client_pipes: [PipeSlots::new(), PipeSlots::new()],
        });
        let work = Box::new(Work {
            shared: &raw const *shared,
            streams: [
                Stream::new(b"stdout", Some(out))?,
                Stream::new(b"stderr", err)?,
            ],
            file: file.map_or(-1, IntoRawFd::into_raw_fd),
        });
        let (thread, work) = spawn(work)?;
        Ok(Self {
            thread,
            shared: ManuallyDrop::new(shared),
            work,
        })
    }

    /// Becomes readable when a reopen is done or the output has ended.
    pub fn done_fd(&self) -> RawFd {
        self.shared.done.as_raw_fd()
    }

    /// Clears [`Self::done_fd`].
    pub fn acknowledge(&self) {
        let _ = rustix::io::read(&self.shared.done, &mut [0; 8]);
    }

    /// Whether both pipes have ended and every byte was written or dropped.
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Whether no reopen is pending.
    pub fn has_reopened(&self) -> bool {
        // In this order: whoever sees that the number was taken also sees that the thread is at it.
        self.shared.next.load(Ordering::SeqCst) == -1
            && !self.shared.switching.load(Ordering::SeqCst)
    }

    /// Lines lost to a full or broken disk.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Switches to another log file; [`Self::has_reopened`] is true once it is in use.
    pub fn reopen(&self, file: OwnedFd) {
        let old = self.shared.next.swap(file.into_raw_fd(), Ordering::SeqCst);
        if old >= 0 {
            drop(coracle_sys::fork::adopt(old));
        }
        signal(&self.shared.wake);
    }

    /// Attaches a client to a stream: from now on output is also written to `pipe`, a pipe's write end. `false` if
    /// there are too many clients.
    pub fn attach(&self, stream: OutputStream, pipe: OwnedFd) -> bool {
        let added = self.shared.client_pipes[stream as usize].add(pipe);
        signal(&self.shared.wake);
        added
    }

    /// Tells the thread to read what the pipes hold now and finish, even if somebody still holds a write end.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        signal(&self.shared.wake);
    }

    /// Joins the thread. Call it only after [`Self::is_finished`]; then it returns at once.
    pub fn join(self) {
        self.shared.leaving.store(true, Ordering::Release);
        signal(&self.shared.wake);
        // SAFETY: the thread was made by pthread_create, is joined once, and has finished its work.
        unsafe { libc::pthread_join(self.thread, std::ptr::null_mut()) };
        // SAFETY: `spawn` leaked this Box for the thread, which is gone; nobody else has the pointer.
        drop(unsafe { Box::from_raw(self.work) });
        let shared = ManuallyDrop::into_inner(self.shared);
        shared.client_pipes.iter().for_each(PipeSlots::close);
    }
}

fn spawn(work: Box<Work>) -> io::Result<(libc::pthread_t, *mut Work)> {
    let work = Box::into_raw(work);
    // SAFETY: attr is initialised before use and destroyed after; `entry` has the required signature; `work` is a
    // leaked Box that the thread alone uses. All signals are blocked meanwhile, so the thread never runs a handler.
    unsafe {
        let mut attr: libc::pthread_attr_t = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut attr);
        libc::pthread_attr_setstacksize(&raw mut attr, STACK_BYTES);
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let mut thread: libc::pthread_t = 0;
        beginning::begins();
        let result = libc::pthread_create(&raw mut thread, &raw const attr, entry, work.cast());
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        libc::pthread_attr_destroy(&raw mut attr);
        if result != 0 {
            beginning::has_begun();
            drop(Box::from_raw(work));
            return Err(io::Error::from_raw_os_error(result));
        }
        Ok((thread, work))
    }
}

/// The thread: only system calls and arithmetic on memory that was allocated before.
extern "C" fn entry(work: *mut libc::c_void) -> *mut libc::c_void {
    let work: *mut Work = work.cast();
    // SAFETY: `spawn` leaked a Work for this thread alone; `shared` outlives the thread, which is joined before the
    // keeper drops it.
    let (work, shared) = unsafe { (&mut *work, &*(*work).shared) };
    beginning::has_begun();
    while work.streams.iter().any(|stream| stream.fd >= 0) {
        take_next(work, shared);
        if !wait(work, shared) {
            break;
        }
    }
    take_next(work, shared);
    finish(work, shared);
    close_fd(&mut work.file);
    shared.client_pipes.iter().for_each(PipeSlots::close);
    shared.finished.store(true, Ordering::Release);
    signal(&shared.done);
    park(work, shared);
    std::ptr::null_mut()
}

/// Writes the unterminated rest of streams whose write end somebody still holds, and closes them.
fn finish(work: &mut Work, shared: &Shared) {
    let file = work.file;
    for stream in work.streams.iter_mut().filter(|stream| stream.fd >= 0) {
        let write = |bytes: &[u8]| write_line(file, bytes, shared);
        stream.lines.finish(Stamp::now(), write);
        close_fd(&mut stream.fd);
    }
}

/// Waits to be joined: a thread that exits frees memory under locks, and a fork must not find them held. A container
/// that has closed its output still runs, and its log is rotated: nothing is written to the new file.
fn park(work: &mut Work, shared: &Shared) {
    while !shared.leaving.load(Ordering::Acquire) {
        take_next(work, shared);
        close_fd(&mut work.file);
        let mut wake = libc::pollfd {
            fd: shared.wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut count = 0_u64;
        // SAFETY: one initialised pollfd, then a read(2) of 8 bytes into a live integer; neither allocates nor locks.
        unsafe {
            libc::poll(&raw mut wake, 1, -1);
            libc::read(wake.fd, (&raw mut count).cast(), 8);
        }
    }
}

fn close_fd(fd: &mut RawFd) {
    if *fd >= 0 {
        // SAFETY: this thread owns the descriptor and clears its number at once.
        unsafe { libc::close(*fd) };
        *fd = -1;
    }
}

/// Switches to the next file, if there is one. Lines that were cut before were written completely to the old one.
fn take_next(work: &mut Work, shared: &Shared) {
    if shared.next.load(Ordering::SeqCst) < 0 {
        return;
    }
    shared.switching.store(true, Ordering::SeqCst);
    // Owned from here on: a file that the keeper hands over meanwhile is another one. Closing the old file may take long.
    let next = shared.next.swap(-1, Ordering::SeqCst);
    if next >= 0 {
        close_fd(&mut work.file);
        work.file = next;
    }
    shared.switching.store(false, Ordering::SeqCst);
    if next >= 0 {
        signal(&shared.done);
    }
}

/// Where the clients' pipes begin in a [`PollSet`]; before them are the two output pipes and the wake-up.
const FIRST_CLIENT: usize = 3;

/// What poll(2) watches for one log.
type PollSet = [libc::pollfd; FIRST_CLIENT + 2 * MAX_CLIENTS];

/// Waits for output or a wake-up and handles it; `false` when all has ended.
fn wait(work: &mut Work, shared: &Shared) -> bool {
    let closing = shared.closing.load(Ordering::Acquire);
    let (mut fds, timeout) = poll_set(work, shared, closing);
    // SAFETY: initialised pollfds, as many as are counted; poll(2) neither allocates nor locks.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    if ready <= 0 && closing {
        // The pipes are empty, and no more output is waited for.
        return false;
    }
    if fds[2].revents != 0 {
        let mut count = 0_u64;
        // SAFETY: read(2) of 8 bytes into a live integer.
        unsafe { libc::read(shared.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
        take_next(work, shared);
    }
    for (at, stream) in work.streams.iter_mut().enumerate() {
        let slots = &shared.client_pipes[at];
        let seen = &fds[FIRST_CLIENT + at * MAX_CLIENTS..][..MAX_CLIENTS];
        stream.clients.handle_poll(slots, seen, closing);
        if stream.clients.is_pending(slots) {
            stream.clients.expire(slots);
        } else if fds[at].revents != 0 {
            drain(stream, slots, work.file, shared, closing);
        }
    }
    true
}

/// The descriptors to poll and the timeout in milliseconds.
fn poll_set(work: &mut Work, shared: &Shared, closing: bool) -> (PollSet, libc::c_int) {
    let wanted = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [wanted(-1); FIRST_CLIENT + 2 * MAX_CLIENTS];
    fds[2] = wanted(shared.wake.as_raw_fd());
    let mut timeout = if closing { 0 } else { -1 };
    for (at, stream) in work.streams.iter_mut().enumerate() {
        let slots = &shared.client_pipes[at];
        match stream.clients.is_pending(slots) {
            // A client that lags behind blocks its stream, as long as it reads at all.
            true if !closing && timeout < 0 => timeout = stream.clients.timeout_ms(),
            true if !closing => timeout = timeout.min(stream.clients.timeout_ms()),
            _ => fds[at].fd = stream.fd,
        }
        stream.clients.watch(
            slots,
            &mut fds[FIRST_CLIENT + at * MAX_CLIENTS..][..MAX_CLIENTS],
        );
    }
    (fds, timeout)
}

/// Reads once and writes every complete line; at the end of the pipe, the rest.
fn drain(stream: &mut Stream, slots: &PipeSlots, file: RawFd, shared: &Shared, closing: bool) {
    let space = stream.lines.space();
    // SAFETY: `space` is writable memory of this thread.
    let got = unsafe { libc::read(stream.fd, space.as_mut_ptr().cast(), space.len()) };
    let now = Stamp::now();
    let write = |bytes: &[u8]| write_line(file, bytes, shared);
    // Non-blocking: there may be no data although poll(2) returned, for a container can read its own output.
    let again = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
    if got > 0 {
        let got = got.unsigned_abs();
        stream.clients.feed(slots, &space[..got], closing);
        stream.lines.filled(got, now, write);
        if closing {
            stream.rest = stream.rest.saturating_sub(got);
        }
        if stream.rest > 0 {
            return;
        }
    } else if got < 0 && again.contains(&io::Error::last_os_error().kind()) {
        return;
    }
    stream.lines.finish(now, write);
    close_fd(&mut stream.fd);
    slots.close();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::time::{Duration, Instant};

    use rustix::pipe::PipeFlags;

    use super::*;

    /// Waits until `seen`, on however slow a machine.
    pub(super) fn wait_for(mut seen: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !seen() {
            assert!(Instant::now() < deadline, "it never came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Not left to the processes that other tests execute, which would keep it from ending.
    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    fn content(file: &mut File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn memfile() -> File {
        rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC)
            .unwrap()
            .into()
    }

    #[test]
    fn a_fork_waits_for_logs_that_are_beginning_and_for_none_that_has_begun() {
        beginning::begins();
        let waiting = std::thread::spawn(await_begun);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        beginning::has_begun();
        waiting.join().unwrap();
        let (out, _out_in) = pipe();
        let log = LogThread::start(out, None, Some(memfile())).unwrap();
        // Forever, if a thread that has begun still counts.
        await_begun();
        log.close();
        wait_for(|| log.is_finished());
        log.join();
    }

    #[test]
    fn a_log_whose_output_was_closed_is_reopened() {
        let (out, out_in) = pipe();
        let log = LogThread::start(out, None, Some(memfile())).unwrap();
        drop(out_in);
        wait_for(|| log.is_finished());
        log.acknowledge();
        let (reader, file) = pipe();
        log.reopen(file);
        wait_for(|| log.has_reopened());
        // The file is closed, or this would wait.
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
        log.join();
    }

    /// Each rotation hands over a descriptor, which has one owner at any time.
    #[test]
    fn rotations_in_a_row_leave_no_descriptor_open_and_close_none_twice() {
        let (out, out_in) = pipe();
        let log = LogThread::start(out, None, Some(memfile())).unwrap();
        let mut readers = Vec::new();
        for _ in 0..2000 {
            let (reader, file) =
                rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
            log.reopen(file);
            readers.push(reader);
            if readers.len() == 100 {
                wait_for(|| log.has_reopened());
                // The last file is in use, all others are closed.
                let last = readers.pop().unwrap();
                for reader in readers.drain(..) {
                    // A process that another test is about to execute holds copies until then.
                    wait_for(|| rustix::io::read(&reader, &mut [0; 1]) == Ok(0));
                }
                readers.push(last);
            }
        }
        wait_for(|| log.has_reopened());
        rustix::io::write(&out_in, b"last\n").unwrap();
        let mut text = [0; 200];
        let last = readers.pop().unwrap();
        wait_for(|| rustix::io::read(&last, &mut text).is_ok_and(|count| count > 0));
        assert!(String::from_utf8_lossy(&text).contains("stdout F last"));
        drop(out_in);
        wait_for(|| log.is_finished());
        log.join();
    }

    #[test]
    fn both_streams_are_stamped_and_a_reopen_loses_nothing() {
        let (out, out_in) = pipe();
        let (err, err_in) = pipe();
        let (mut first, mut second) = (memfile(), memfile());
        let log = LogThread::start(out, Some(err), Some(first.try_clone().unwrap())).unwrap();
        let mut out_in = File::from(out_in);
        out_in.write_all(b"one\nhalf").unwrap();
        wait_for(|| content(&mut first).ends_with(" stdout F one\n"));
        log.reopen(second.try_clone().unwrap().into());
        wait_for(|| log.has_reopened());
        out_in.write_all(b" done\nlast").unwrap();
        File::from(err_in).write_all(b"oops\n").unwrap();
        drop(out_in);
        wait_for(|| log.is_finished());
        assert_eq!(log.dropped(), 0);
        log.join();
        assert_eq!(content(&mut first).lines().count(), 1);
        let text = content(&mut second);
        for end in [
            " stdout F half done\n",
            " stderr F oops\n",
            " stdout P last\n",
        ] {
            assert!(text.contains(end), "{text:?} lacks {end:?}");
        }
    }

    #[test]
    fn a_file_that_is_slow_to_close_is_followed_by_the_newest_one() {
        // A copy of it in a process that another test makes would have it closed at once here.
        let _alone = crate::keeper::forking::held();
        // Closing it waits for the peer, which takes nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let slow = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        slow.set_nonblocking(true).unwrap();
        while (&slow).write(&[0; 65_536]).is_ok() {}
        let linger = Some(Duration::from_secs(600));
        rustix::net::sockopt::set_socket_linger(&slow, linger).unwrap();
        let (out, out_in) = pipe();
        let (first, mut second) = (memfile(), memfile());
        let slow = File::from(OwnedFd::from(slow));
        let log = LogThread::start(out, None, Some(slow)).unwrap();
        log.reopen(first.into());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!log.has_reopened(), "the old file is still open");
        log.reopen(second.try_clone().unwrap().into());
        drop(peer);
        wait_for(|| log.has_reopened());
        let mut out_in = File::from(out_in);
        out_in.write_all(b"line\n").unwrap();
        wait_for(|| content(&mut second).ends_with(" stdout F line\n"));
        drop(out_in);
        wait_for(|| log.is_finished());
        assert_eq!(log.dropped(), 0);
        // Its container may run on.
        log.reopen(memfile().into());
        wait_for(|| log.has_reopened());
        log.join();
    }

    #[test]
    fn who_reads_a_containers_output_itself_does_not_hold_up_its_log() {
        let (out, out_in) = pipe();
        let own = format!("/proc/self/fd/{}", out_in.as_raw_fd());
        let mut thief = File::open(own).unwrap();
        let file = memfile();
        let log = LogThread::start(out, None, Some(file.try_clone().unwrap())).unwrap();
        let mut out_in = File::from(out_in);
        for _ in 0..2000 {
            out_in.write_all(b"taken\n").unwrap();
            rustix::io::ioctl_fionbio(&thief, true).unwrap();
            let _ = thief.read(&mut [0; 6]);
        }
        log.reopen(memfile().into());
        wait_for(|| log.has_reopened());
        log.close();
        wait_for(|| log.is_finished());
        log.join();
    }

    #[test]
    fn a_full_disk_drops_lines_and_close_ends_the_thread_under_a_held_pipe() {
        let (out, out_in) = pipe();
        let (err, _err_in) = pipe();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let log = LogThread::start(out, Some(err), Some(full)).unwrap();
        File::from(out_in.try_clone().unwrap())
            .write_all(b"a\nb\n")
            .unwrap();
        wait_for(|| log.dropped() == 2);
        assert!(!log.is_finished());
        log.close();
        wait_for(|| log.is_finished());
        log.join();
    }

    #[test]
    fn who_writes_on_when_the_container_has_ended_has_neither_log_nor_reader() {
        let (out, out_in) = pipe();
        let (err, err_in) = pipe();
        let file = File::options().write(true).open("/dev/null").unwrap();
        let log = LogThread::start(out, Some(err), Some(file)).unwrap();
        // As siblings that were given the descriptors.
        let again = out_in.try_clone().unwrap();
        let writers = [out_in, again, err_in].map(|end| {
            let mut end = File::from(end);
            std::thread::spawn(move || while end.write_all(&[b'x'; 8192]).is_ok() {})
        });
        std::thread::sleep(Duration::from_millis(50));
        log.close();
        wait_for(|| log.is_finished());
        log.join();
        for writer in writers {
            writer.join().unwrap();
        }
    }

    #[test]
    fn an_unterminated_line_is_written_while_the_pipe_is_held_open() {
        let (out, out_in) = pipe();
        let mut file = memfile();
        let log = LogThread::start(out, None, Some(file.try_clone().unwrap())).unwrap();
        let mut out_in = File::from(out_in);
        out_in.write_all(b"whole\nhalf").unwrap();
        wait_for(|| content(&mut file).ends_with(" stdout F whole\n"));
        log.close();
        wait_for(|| log.is_finished());
        log.join();
        assert!(content(&mut file).ends_with(" stdout P half\n"));
        drop(out_in);
    }
}
