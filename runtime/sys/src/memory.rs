//! Makes a process hold no more memory than it needs.
//!
//! Called by: the daemon after requests, keepers and container processes at their start. Calls: the C library's allocator,
//! madvise(2).
//! Invariant: no content changes. Not here: when it is worth the work.

use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Returns the allocator's free pages to the kernel. Takes about a millisecond for a heap of 10 MiB.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Limits the allocator to `arenas` heaps, which all threads share. Without a limit there are up to eight a core, and
/// each keeps pages of its own. For a process that has a single thread still.
pub fn limit_arenas(arenas: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets a parameter of the allocator; the caller has no second thread that could allocate.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::from(arenas));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Unmaps the pages of this program's own file that are in memory. Those that are used again are mapped again, from the
/// kernel's cache of the file, sixteen at a time, within about a microsecond. Breakpoints in the program are lost.
pub fn unmap_program() {
    for segment in read_only_segments() {
        // SAFETY: the range is of whole pages of a segment that the linker made without the right to write, so that they
        // are those of the file, to which a page returns whoever reads or executes it next.
        unsafe {
            let length = segment.end - segment.start;
            libc::madvise(segment.start as *mut c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// The whole pages of the program's segments that it may read or execute, and never write, not even while it is loaded.
fn read_only_segments() -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    // SAFETY: the function keeps to the types of dl_iterate_phdr(3), which calls it before it returns only.
    unsafe {
        libc::dl_iterate_phdr(Some(add_segments), (&raw mut segments).cast());
    }
    segments
}

/// Adds the segments of the program, which is told first, to `segments`, and ends the iteration.
unsafe extern "C" fn add_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    segments: *mut c_void,
) -> c_int {
    // SAFETY: both pointers are valid during the call; the second is what `read_only_segments` has passed, and nobody
    // else uses it meanwhile.
    let (object, segments) = unsafe { (&*object, &mut *segments.cast::<Vec<Range<usize>>>()) };
    // SAFETY: the object has that many headers, which are mapped as long as it is.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let page = rustix::param::page_size();
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        let end = (start + header.p_memsz as usize) / page * page;
        let start = start.next_multiple_of(page);
        if start < end {
            segments.push(start..end);
        }
    }
    1
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    /// Resident pages of files of this process.
    fn of_files() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(2).unwrap().parse().unwrap()
    }

    #[test]
    fn the_programs_pages_are_unmapped() {
        crate::fork::test_alone("memory::tests::pages_are_unmapped_and_come_back");
    }

    #[test]
    #[ignore = "it measures its process; the test above runs it"]
    fn pages_are_unmapped_and_come_back() {
        let segments = read_only_segments();
        assert!(!segments.is_empty());
        for segment in &segments {
            for at in segment.clone().step_by(rustix::param::page_size()) {
                // SAFETY: it is mapped and can be read.
                std::hint::black_box(unsafe { (at as *const u8).read_volatile() });
            }
        }
        let pages: usize = segments.iter().map(ExactSizeIterator::len).sum();
        let pages = (pages / rustix::param::page_size()) as u64;
        let before = of_files();
        assert!(before >= pages, "{before} pages, {pages} of the program");
        unmap_program();
        let after = of_files();
        assert!(
            after + pages / 4 < before,
            "{before} pages before, {after} after, {pages} of the program"
        );
    }
}
