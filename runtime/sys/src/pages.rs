//! Spares the kernel the search for the mappings of pages that a process shares with thousands of forks.
//!
//! Called by: the spawner, before its first fork and around each. Calls: /proc/self, vmsplice(2).
//! Invariants: nothing is read from the pipes, which only hold references; a page that is written to later is copied, as
//! any page that a fork shares; no content changes.
//! Not here: what is in the pages.
//!
//! Why: the kernel moves pages to make large free blocks, and to move one it visits each process that may map it: the
//! process that had the page first and all its forks. With thousands of them that takes it a processor for seconds at a
//! time. Two kinds of pages are concerned. Those that all forks share: it leaves pages alone that somebody else refers to
//! (the kernel's mm/compaction.c: isolate_migratepages_block), and a pipe is somebody else. And those that the process
//! writes again and again: each fork that does not write to them, too, keeps the version of its time. So it does. A page
//! that a fork has made its own is this process's alone from then on, written or not: that it is written again and again
//! shows when it is so though the last fork has left it shared.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Bytes that a pipe is asked to have room for: what the kernel allows everyone.
const PIPE_BYTES: usize = 1 << 20;
/// Most pipes: with pages of 4 KiB they hold 8 MiB.
const MAX_PIPES: usize = 8;
/// The page is in memory. Source: the kernel's Documentation/admin-guide/mm/pagemap.rst, bit 63.
const IS_PRESENT: u64 = 1 << 63;
/// It belongs to a file or to shared memory. The same, bit 61.
const IS_OF_FILE: u64 = 1 << 61;

/// This process alone maps it. The same, bit 56.
const IS_EXCLUSIVE: u64 = 1 << 56;
/// Most pages that a fork makes its own.
const MAX_WRITTEN: usize = 128;
/// After so many forks it is found out anew which pages these are: some had been shared with a fork that ended at once.
const LOOK_AGAIN: usize = 64;
/// The longest mapping in which written pages are looked for, in bytes.
const MAX_RANGE: usize = 16 << 20;
/// Entries of the page map that are read at a time.
const ENTRIES: usize = 256;

/// Pipes that hold references to pages, which may be moved again when this is dropped; and where this process writes.
#[derive(Debug)]
pub struct Held {
    pipes: Vec<(OwnedFd, OwnedFd)>,
    pages: usize,
    pagemap: File,
    /// First and last address of memory that can be written.
    writable: Vec<(usize, usize)>,
    /// Those that are written between two forks.
    written: Pages,
    /// Those of this process alone that the last fork has left shared.
    candidates: Pages,
    forks: usize,
}

/// Addresses of pages, in their order. It allocates nothing.
#[derive(Clone, Copy, Debug)]
struct Pages {
    addresses: [usize; MAX_WRITTEN],
    count: usize,
}

impl Pages {
    const NONE: Self = Self {
        addresses: [0; MAX_WRITTEN],
        count: 0,
    };

    fn all(&self) -> &[usize] {
        &self.addresses[..self.count]
    }

    fn has(&self, address: usize) -> bool {
        self.all().binary_search(&address).is_ok()
    }

    /// Adds one behind the others, while there is room.
    fn add(&mut self, address: usize) {
        if let Some(next) = self.addresses.get_mut(self.count) {
            *next = address;
            self.count += 1;
        }
    }
}

impl Held {
    /// How many pages are held.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Finds the pages that this process writes to between its forks. Before a fork; it allocates nothing.
    pub fn find_written(&mut self) {
        let is_known = !self.forks.is_multiple_of(LOOK_AGAIN);
        self.forks = self.forks.wrapping_add(1);
        let (known, candidates) = (self.written, self.candidates);
        (self.written, self.candidates) = (Pages::NONE, Pages::NONE);
        for number in 0..self.writable.len() {
            let (start, end) = self.writable[number];
            self.each_exclusive(start, end, |held, address| {
                match candidates.has(address) || is_known && known.has(address) {
                    true => held.written.add(address),
                    false => held.candidates.add(address),
                }
            });
        }
    }

    /// Calls `found` with each page between two addresses that this process alone maps.
    fn each_exclusive(&mut self, start: usize, end: usize, found: impl Fn(&mut Self, usize)) {
        let page = rustix::param::page_size();
        let mut entries = [0; ENTRIES * 8];
        for first in (start..end).step_by(ENTRIES * page) {
            let wanted = ((end - first) / page).min(ENTRIES) * 8;
            let at = (first / page * 8) as u64;
            let read = self.pagemap.read_at(&mut entries[..wanted], at);
            for (number, entry) in entries[..read.unwrap_or(0)].chunks_exact(8).enumerate() {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                let is_anonymous = entry & IS_PRESENT != 0 && entry & IS_OF_FILE == 0;
                if is_anonymous && entry & IS_EXCLUSIVE != 0 {
                    found(self, first + number * page);
                }
            }
        }
    }

    /// Makes these pages this process's own. In the fork, before it does anything else.
    pub fn own_written(&self) {
        for address in self.written.all() {
            let byte = std::ptr::with_exposed_provenance_mut::<u8>(*address);
            // SAFETY: the page is mapped and writable, as it was in the parent a moment ago; this process has one thread,
            // and the byte keeps its value.
            unsafe { byte.write_volatile(byte.read_volatile()) };
        }
    }
}

/// Holds the pages that this process has now, its stack excepted, which changes anyway: at most 8 MiB of them.
///
/// Errors: /proc cannot be read, or no pipe can be made.
pub fn hold() -> io::Result<Held> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut runs = Vec::new();
    for (start, end) in maps.lines().filter_map(private_range) {
        add_own(&pagemap, start, end, &mut runs)?;
    }
    let mut held = Held {
        pipes: Vec::new(),
        pages: 0,
        pagemap,
        writable: maps.lines().filter_map(writable_range).collect(),
        written: Pages::NONE,
        candidates: Pages::NONE,
        forks: 0,
    };
    for run in runs {
        if !held.add(run)? {
            break;
        }
    }
    Ok(held)
}

/// Pages that lie next to each other.
#[derive(Clone, Copy, Debug)]
struct Run {
    address: usize,
    pages: usize,
}

impl Held {
    /// Adds a run. `false` when there is no more room.
    fn add(&mut self, run: Run) -> io::Result<bool> {
        let page = rustix::param::page_size();
        let mut done = 0;
        while done < run.pages {
            let rest = (run.address + done * page, (run.pages - done) * page);
            match self.splice(rest) {
                Ok(bytes) => {
                    done += bytes / page;
                    self.pages += bytes / page;
                }
                Err(Errno::AGAIN) if self.pipes.len() == MAX_PIPES => return Ok(false),
                Err(Errno::AGAIN) => {
                    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                    rustix::pipe::fcntl_setpipe_size(&pipe.1, PIPE_BYTES)?;
                    self.pipes.push(pipe);
                }
                // Unmapped meanwhile.
                Err(Errno::FAULT) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Puts references to the first pages of `(address, bytes)` into the last pipe, as many as it has room for, and
    /// returns their bytes. Errors: EAGAIN when it is full, or there is none.
    fn splice(&self, (address, bytes): (usize, usize)) -> Result<usize, Errno> {
        let Some((_, pipe)) = self.pipes.last() else {
            return Err(Errno::AGAIN);
        };
        let run = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: bytes,
        };
        // SAFETY: `pipe` is a pipe's writing end, so that the kernel only reads the memory, which it checks to be mapped;
        // the pages are not given away (no SPLICE_F_GIFT), and the addresses are never used by this program.
        let spliced =
            unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const run, 1, libc::SPLICE_F_NONBLOCK) };
        usize::try_from(spliced).map_err(|_| last_error())
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The addresses of a line of `/proc/PID/maps` for private memory that can be read. Source: proc(5).
fn private_range(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let name = fields.nth(3).unwrap_or_default();
    let is_wanted = rights.starts_with('r') && rights.ends_with('p');
    // The stack, and what the kernel shows of itself.
    if !is_wanted || (name.starts_with('[') && name != "[heap]") {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

/// The addresses of a line for private memory that can be written, the stack included. Mappings of many pages are left
/// out: they would take longer to look at than their few pages are worth.
fn writable_range(line: &str) -> Option<(usize, usize)> {
    let is_stack = line.ends_with("[stack]");
    let line = line.trim_end_matches("[stack]");
    let (start, end) = private_range(line).filter(|_| is_stack || line.contains(" rw"))?;
    (end - start <= MAX_RANGE).then_some((start, end))
}

/// Adds the pages between two addresses that are in memory and of no file.
fn add_own(pagemap: &File, start: usize, end: usize, runs: &mut Vec<Run>) -> io::Result<()> {
    let page = rustix::param::page_size();
    let mut entries = vec![0; (end - start) / page * 8];
    let read = pagemap.read_at(&mut entries, (start / page * 8) as u64)?;
    let mut last: Option<Run> = None;
    for (at, entry) in entries[..read].chunks_exact(8).enumerate() {
        let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
        if entry & IS_PRESENT == 0 || entry & IS_OF_FILE != 0 {
            runs.extend(last.take());
            continue;
        }
        let address = start + at * page;
        last.get_or_insert(Run { address, pages: 0 }).pages += 1;
    }
    runs.extend(last);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn pages_are_held_and_found() {
        for name in [
            "pages_of_the_heap_are_held_up_to_the_limit",
            "pages_written_since_the_last_fork_are_found",
        ] {
            crate::fork::test_alone(&format!("pages::tests::{name}"));
        }
    }

    #[test]
    #[ignore = "others' forks share its pages; the test above runs it in a process of its own"]
    fn pages_of_the_heap_are_held_up_to_the_limit() {
        let page = rustix::param::page_size();
        let limit = MAX_PIPES * PIPE_BYTES / page;
        let held = hold().unwrap();
        assert!((1..=limit).contains(&held.pages()), "{}", held.pages());
        let room: usize = held
            .pipes
            .iter()
            .map(|(read, _)| usize::try_from(rustix::io::ioctl_fionread(read).unwrap()).unwrap())
            .sum();
        assert_eq!(room, held.pages() * page);
        // More than there is room for.
        let large = vec![1_u8; 2 * MAX_PIPES * PIPE_BYTES];
        assert_eq!(hold().unwrap().pages(), limit);
        assert!(large.iter().all(|byte| *byte == 1));
    }

    #[test]
    #[ignore = "others' forks share its pages; the first test runs it in a process of its own"]
    fn pages_written_since_the_last_fork_are_found() {
        let page = rustix::param::page_size();
        let mut memory = vec![1_u8; 64 * page];
        let mut held = hold().unwrap();
        let first_byte = memory.as_ptr().addr();
        let start = first_byte.next_multiple_of(page);
        held.writable = vec![(start, start + 32 * page)];
        held.find_written();
        assert_eq!(
            (held.written.count, held.candidates.count),
            (0, 32),
            "no fork shares any"
        );
        let first = Fork::new(&held);
        let mut write = |number: usize| memory[start - first_byte + number * page] += 1;
        write(3);
        held.find_written();
        assert_eq!(held.written.all(), [start + 3 * page]);
        let second = Fork::new(&held);
        // The second fork has its own, so this process alone has this one, though it did not write again.
        write(5);
        held.find_written();
        assert_eq!(held.written.all(), [start + 3 * page]);
        assert_eq!(held.candidates.all(), [start + 5 * page]);
        let third = Fork::new(&held);
        held.find_written();
        assert_eq!(
            (held.written.count, held.candidates.count),
            (1, 0),
            "written once"
        );
        held.forks = LOOK_AGAIN;
        held.find_written();
        assert_eq!((held.written.count, held.candidates.count), (0, 1));
        let fourth = Fork::new(&held);
        held.find_written();
        assert_eq!(
            (held.written.count, held.candidates.count),
            (0, 0),
            "written no more"
        );
        drop((first, second, third, fourth));
        assert_eq!(memory[start - first_byte + 3 * page], 2);
    }

    /// A fork with its own copies of what `held` has found. Ends when dropped.
    struct Fork(OwnedFd);

    impl Fork {
        fn new(held: &Held) -> Self {
            let (read, write) = rustix::pipe::pipe().unwrap();
            match crate::fork::fork(0, None).unwrap() {
                crate::fork::Forked::Parent { pidfd } => {
                    drop(write);
                    assert_eq!(rustix::io::read(&read, &mut [0]).unwrap(), 1);
                    Self(pidfd)
                }
                crate::fork::Forked::Child => {
                    held.own_written();
                    let _ = rustix::io::write(&write, b"x");
                    loop {
                        std::thread::park();
                    }
                }
            }
        }
    }

    impl Drop for Fork {
        fn drop(&mut self) {
            rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL).unwrap();
            rustix::process::waitid(
                rustix::process::WaitId::PidFd(self.0.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            )
            .unwrap();
        }
    }

    #[test]
    fn only_private_memory_that_can_be_read_counts() {
        let heap = "55e0-55f0 rw-p 00000000 00:00 0                          [heap]";
        assert_eq!(private_range(heap), Some((0x55e0, 0x55f0)));
        assert_eq!(writable_range(heap), Some((0x55e0, 0x55f0)));
        let stack = "7ffc-7ffd rw-p 00000000 00:00 0 [stack]";
        assert_eq!(writable_range(stack), Some((0x7ffc, 0x7ffd)));
        let relocated = "7f00-7f10 r--p 00001000 fe:00 12 /usr/bin/coracle";
        assert_eq!(private_range(relocated), Some((0x7f00, 0x7f10)));
        assert_eq!(writable_range(relocated), None);
        for other in [
            "7ffc-7ffd rw-p 00000000 00:00 0 [stack]",
            "7ffe-7fff r-xp 00000000 00:00 0 [vdso]",
            "7f00-7f10 rw-s 00000000 00:01 5 /memfd:x (deleted)",
            "7f00-7f10 ---p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(private_range(other), None, "{other}");
        }
    }
}
