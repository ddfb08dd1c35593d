//! Writes the daemon's log to standard error, on a thread of its own.
//!
//! Called by: [`super::recent`] with each event; `main`, at the end; the panic hook. Whoever reads standard error (journald,
//! a supervisor's pipe, a disk) may stand still, for example because a tenant keeps the journal's disk busy; a thread that
//! answers RPCs must not stand still with it.
//! Invariants: nobody but the thread waits for the reader, except for [`FLUSH`] at the end and at a panic; at most
//! [`MAX_BYTES`] wait; what finds no room is counted, and the count is logged as soon as there is room again. Before the
//! thread starts, lines are written at once.
//! Must not know: what lines say.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, panic, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Most bytes that wait for the reader.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// What a waiting line takes beside its bytes.
const LINE_BYTES: usize = 64;
/// How long the end of the daemon, or a panic, waits for the reader.
const FLUSH: Duration = Duration::from_secs(1);
/// Stack of the thread: it formats one event, that of what was lost.
const STACK_BYTES: usize = 256 << 10;

static QUEUE: Queue = Queue::new();

/// Writes lines on a thread of its own from now on, and the texts of panics with them. To be called once, when threads may
/// be started. Errors: there is no thread; lines are written at once then.
pub fn write_in_background() -> io::Result<()> {
    // Before the first line finds it.
    QUEUE.lock().has_writer = true;
    let writer = thread::Builder::new()
        .name("coracle-log".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(|| QUEUE.drain(io::stderr()));
    if let Err(error) = writer {
        QUEUE.lock().has_writer = false;
        return Err(error);
    }
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        last_words(&format!("thread '{name}' {panic}{trace}\n"));
    }));
    Ok(())
}

/// Writes `text` behind all lines that wait. Returns when all are written, or after [`FLUSH`].
pub fn last_words(text: &str) {
    write(text.as_bytes().into());
    flush();
}

/// Returns when no line waits any more, or after [`FLUSH`].
pub fn flush() {
    QUEUE.flush(FLUSH);
}

/// Writes `line` as soon as those before it are written. It may be lost.
pub(super) fn write(line: Arc<[u8]>) {
    if let Some(line) = QUEUE.push(line) {
        write_all(io::stderr(), &line);
    }
}

struct Queue {
    waiting: Mutex<Waiting>,
    /// A line came.
    filled: Condvar,
    /// The last line was written.
    emptied: Condvar,
}

struct Waiting {
    lines: VecDeque<Arc<[u8]>>,
    /// Of `lines` and of the one that is being written.
    bytes: usize,
    /// How many found no room since it was last logged.
    lost: u64,
    has_writer: bool,
}

impl Queue {
    const fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                lines: VecDeque::new(),
                bytes: 0,
                lost: 0,
                has_writer: false,
            }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// Takes `line`, or gives it back if nobody would write it.
    fn push(&self, line: Arc<[u8]>) -> Option<Arc<[u8]>> {
        let mut waiting = self.lock();
        if !waiting.has_writer {
            return Some(line);
        }
        let bytes = waiting.bytes + line.len() + LINE_BYTES;
        if bytes > MAX_BYTES {
            waiting.lost += 1;
            return None;
        }
        waiting.bytes = bytes;
        waiting.lines.push_back(line);
        self.filled.notify_one();
        None
    }

    /// Writes what comes to `out`, for ever.
    fn drain(&self, out: impl AsFd) {
        loop {
            let line = self.next();
            write_all(&out, &line);
            let lost = self.written(&line);
            if lost > 0 {
                // Behind the lines that still wait: what was lost came after them.
                tracing::warn!(
                    lost,
                    "lines of this log were lost: whoever reads it was too slow"
                );
            }
        }
    }

    /// The next line, once there is one.
    fn next(&self) -> Arc<[u8]> {
        let mut waiting = self.lock();
        loop {
            match waiting.lines.pop_front() {
                Some(line) => return line,
                None => waiting = unpoisoned(self.filled.wait(waiting)),
            }
        }
    }

    /// `line` was written. Returns how many lines were lost, once, if there is room to say so.
    fn written(&self, line: &[u8]) -> u64 {
        let mut waiting = self.lock();
        waiting.bytes -= line.len() + LINE_BYTES;
        if waiting.bytes == 0 {
            self.emptied.notify_all();
        }
        match waiting.bytes <= MAX_BYTES / 2 {
            true => std::mem::take(&mut waiting.lost),
            false => 0,
        }
    }

    fn flush(&self, most: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.has_writer && waiting.bytes > 0;
        let done = self.emptied.wait_timeout_while(self.lock(), most, is_busy);
        drop(unpoisoned(done));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        unpoisoned(self.waiting.lock())
    }
}

/// Nothing panics under the lock.
fn unpoisoned<T>(locked: Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

/// Writes all of `line`, without the lock of the standard library. What cannot be written is lost: there is nobody to tell.
fn write_all(out: impl AsFd, mut line: &[u8]) {
    while !line.is_empty() {
        match rustix::io::write(&out, line) {
            Ok(0) => return,
            Ok(length) => line = &line[length..],
            Err(Errno::INTR) => {}
            // Somebody who shares it has made it so.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&out, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() {
        static STALLED: Queue = Queue::new();
        STALLED.lock().has_writer = true;
        let (mut reader, writer) = io::pipe().unwrap();
        thread::spawn(|| STALLED.drain(writer));
        let line: Arc<[u8]> = vec![b'x'; 1 << 10].into();
        let started = Instant::now();
        for _ in 0..4096 {
            assert!(STALLED.push(Arc::clone(&line)).is_none());
        }
        STALLED.flush(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(5), "held up");
        let lost = STALLED.lock().lost;
        // A MiB waits, and 64 KiB are in the pipe.
        assert!((2900..4096 - 900).contains(&lost), "{lost} lost");
        let mut read = vec![0; (4096 - lost as usize) << 10];
        reader.read_exact(&mut read).unwrap();
        STALLED.flush(Duration::from_secs(10));
        let waiting = STALLED.lock();
        assert_eq!((waiting.bytes, waiting.lost), (0, 0), "told");
    }
}
