//! The last lines of the daemon's log, for a bug report.
//!
//! Written by: the log, line by line. Read by: `coracle debug dump`. Invariant: at most [`MAX_BYTES`] and [`MAX_LINES`], the
//! oldest go first; where memory for them is not used, none is taken.
//! Must not know: what lines say.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bounded::bounded;
use super::queue;

/// Most bytes that are kept.
const MAX_BYTES: usize = 512 << 10;
/// Most lines that are kept.
const MAX_LINES: usize = 5000;

static RECENT: Mutex<Recent> = Mutex::new(Recent {
    lines: VecDeque::new(),
    bytes: 0,
});

struct Recent {
    lines: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, line: Arc<[u8]>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > MAX_BYTES || self.lines.len() > MAX_LINES {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }
}

/// The last lines, oldest first.
pub fn recent_lines() -> String {
    let recent = recent();
    let lines = recent.lines.iter();
    lines.map(|line| String::from_utf8_lossy(line)).collect()
}

fn recent() -> MutexGuard<'static, Recent> {
    // Nothing panics under the lock.
    RECENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Standard error, by way of the queue, and the lines that are kept.
pub(super) struct Output;

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    /// The log calls this once for each event.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let line: Arc<[u8]> = bounded(line).into();
        recent().push(Arc::clone(&line));
        queue::write(line);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_first() {
        let mut recent = Recent {
            lines: VecDeque::new(),
            bytes: 0,
        };
        for number in 0..MAX_LINES + 3 {
            recent.push(format!("{number}\n").into_bytes().into());
        }
        assert_eq!(recent.lines.len(), MAX_LINES);
        assert_eq!(&**recent.lines.front().unwrap(), b"3\n");
        recent.push(vec![b'x'; MAX_BYTES].into());
        assert_eq!((recent.lines.len(), recent.bytes), (1, MAX_BYTES));
    }
}
