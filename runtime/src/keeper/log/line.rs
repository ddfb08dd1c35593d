//! Cuts a stream into CRI log lines, in memory that was allocated before.
//!
//! Called by the log thread only, which must not allocate: the buffer has room for the line's head in front of the
//! text, so that a line is written from where it was read.
//! Invariants: text is at most 16 KiB per line; a piece is `F` if a newline ended it and `P` otherwise, so that a
//! reader adds no newline that the program did not write.
//! It must not know about files.

use std::io::{self, Write as _};

use jiff::Timestamp;

use super::MAX_TEXT;

/// `2026-11-21T02:03:04.123456789Z stdout F `
const HEAD: usize = 30 + 1 + 6 + 1 + 1 + 1;

/// When a line was read: RFC 3339 in UTC with nine digits.
#[derive(Clone, Copy)]
pub(super) struct Stamp([u8; 30]);

impl Stamp {
    /// The current time.
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self::at(now.tv_sec, now.tv_nsec as i32)
    }

    /// From `seconds` since 1970 and `nanos` within them. The kernel's clock is never before 1970; a year after 9999 is
    /// written as 1970.
    pub(super) fn at(seconds: i64, nanos: i32) -> Self {
        let time = Timestamp::new(seconds, nanos).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut text = *b"1970-01-01T00:00:00.000000000Z";
        // Writing to an array allocates nothing, and a year of four digits fills it.
        let _ = write!(&mut text[..], "{time:.9}");
        Self(text)
    }
}

/// Memory mapped from the kernel, which allocates a page when it is first touched: a container that writes little
/// costs one page, and none of it is in the heap, which container processes inherit.
pub(super) struct Pages {
    start: *mut u8,
}

/// Maps whole pages for a line's head, its text and its end.
const PAGES_BYTES: usize = (HEAD + MAX_TEXT + 1).next_multiple_of(4096);

// SAFETY: the mapping belongs to this value alone, whichever thread holds it.
unsafe impl Send for Pages {}

impl Pages {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), PAGES_BYTES, access, MapFlags::PRIVATE)
        }?;
        Ok(Self {
            start: start.cast(),
        })
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is that long, readable, zeroed by the kernel, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, PAGES_BYTES) }
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, writable, and borrowed uniquely through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, PAGES_BYTES) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and no borrow of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), PAGES_BYTES) };
    }
}

/// One stream's buffer.
pub(super) struct Lines {
    stream: &'static [u8; 6],
    buffer: Pages,
    /// Bytes of text held, from `HEAD` on.
    held: usize,
}

impl Lines {
    /// A buffer for `stream`. Errors: no memory.
    pub(super) fn new(stream: &'static [u8; 6]) -> io::Result<Self> {
        let buffer = Pages::new()?;
        Ok(Self {
            stream,
            buffer,
            held: 0,
        })
    }

    /// Space for the next read; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[HEAD + self.held..HEAD + MAX_TEXT]
    }

    /// `count` bytes were read into [`Self::space`]: passes every complete line to `write`, and a full buffer as a `P`
    /// piece.
    pub(super) fn filled(&mut self, count: usize, stamp: Stamp, write: impl Fn(&[u8])) {
        let mut from = self.held;
        self.held += count;
        let mut start = 0;
        while let Some(at) = self.buffer[HEAD + from..HEAD + self.held]
            .iter()
            .position(|b| *b == b'\n')
        {
            let end = from + at;
            self.emit(start..end, b'F', stamp, &write);
            start = end + 1;
            from = start;
        }
        if start > 0 {
            self.buffer
                .copy_within(HEAD + start..HEAD + self.held, HEAD);
            self.held -= start;
        }
        if self.held == MAX_TEXT {
            self.emit(0..MAX_TEXT, b'P', stamp, &write);
            self.held = 0;
        }
    }

    /// The stream has ended: writes the rest as a `P` piece.
    pub(super) fn finish(&mut self, stamp: Stamp, write: impl Fn(&[u8])) {
        if self.held > 0 {
            self.emit(0..self.held, b'P', stamp, &write);
            self.held = 0;
        }
    }

    /// Writes `text` with its head in front, which overwrites text that was written already.
    fn emit(
        &mut self,
        text: std::ops::Range<usize>,
        tag: u8,
        stamp: Stamp,
        write: &impl Fn(&[u8]),
    ) {
        let std::ops::Range { start, end } = text;
        // The head fits before `start`: HEAD bytes are reserved before the text.
        let head = &mut self.buffer[start..start + HEAD];
        head[..30].copy_from_slice(&stamp.0);
        head[30] = b' ';
        head[31..37].copy_from_slice(self.stream);
        head[37..40].copy_from_slice(&[b' ', tag, b' ']);
        let close = HEAD + end;
        let after = self.buffer[close];
        self.buffer[close] = b'\n';
        write(&self.buffer[start..=close]);
        self.buffer[close] = after;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn feed(pieces: &[&[u8]]) -> Vec<String> {
        let seen = RefCell::new(Vec::new());
        let mut lines = Lines::new(b"stdout").unwrap();
        let write = |bytes: &[u8]| {
            seen.borrow_mut()
                .push(String::from_utf8_lossy(bytes).into_owned())
        };
        for piece in pieces {
            let mut left = *piece;
            while !left.is_empty() {
                let space = lines.space();
                let count = left.len().min(space.len());
                space[..count].copy_from_slice(&left[..count]);
                left = &left[count..];
                lines.filled(count, Stamp::at(0, 5), write);
            }
        }
        lines.finish(Stamp::at(0, 6), write);
        seen.into_inner()
    }

    #[test]
    fn stamps_are_rfc3339_in_utc() {
        let text = |s, n| String::from_utf8(Stamp::at(s, n).0.to_vec()).unwrap();
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            text(951_782_399, 999_999_999),
            "2000-02-28T23:59:59.999999999Z"
        );
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_795_226_584, 7), "2026-11-21T02:03:04.000000007Z");
        assert_eq!(text(i64::MAX, 7), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_16_kib() {
        let stamp = "1970-01-01T00:00:00.000000005Z stdout";
        assert_eq!(
            feed(&[b"a\nb", b"c\n\n"]),
            [
                format!("{stamp} F a\n"),
                format!("{stamp} F bc\n"),
                format!("{stamp} F \n")
            ]
        );
        assert_eq!(
            feed(&[b"rest"]),
            ["1970-01-01T00:00:00.000000006Z stdout P rest\n"]
        );
        let long = vec![b'x'; MAX_TEXT + 3];
        let seen = feed(&[&long, b"\n"]);
        assert_eq!(seen.len(), 2);
        assert!(
            seen[0].starts_with(&format!("{stamp} P xxx")) && seen[0].len() == HEAD + MAX_TEXT + 1
        );
        assert_eq!(seen[1], format!("{stamp} F xxx\n"));
    }

    #[test]
    fn every_byte_comes_out_in_order_whatever_the_pieces() {
        let mut state = 7_u32;
        let text: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if state >> 24 < 3 {
                    b'\n'
                } else {
                    b'a' + (state >> 28) as u8
                }
            })
            .collect();
        let pieces: Vec<&[u8]> = text.chunks(1 + (state as usize % 5000)).collect();
        let joined: String = feed(&pieces)
            .iter()
            .map(|l| {
                if l.as_bytes()[38] == b'F' {
                    &l[HEAD..]
                } else {
                    l[HEAD..].strip_suffix('\n').unwrap()
                }
            })
            .collect();
        let want = String::from_utf8(text).unwrap();
        assert_eq!(joined, want);
    }
}
