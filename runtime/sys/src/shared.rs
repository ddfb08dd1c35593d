//! A page of numbers in a file, which several processes count in.
//!
//! Called by: the daemon, and the spawner, whose keepers inherit it. Calls: fallocate(2), mmap(2), madvise(2).
//! Invariants: the page has its block before it is mapped, so that a full disk ends no process that counts; it stays mapped as
//! long as the process lives.
//! Not here: what the numbers mean.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use rustix::fs::FallocateFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Numbers in a page.
pub const WORDS: usize = 512;
const BYTES: usize = WORDS * size_of::<AtomicU64>();

/// The numbers of a page.
pub type Words = [AtomicU64; WORDS];

/// Maps the first page of `file`, which is of root alone and that nobody cuts short; bytes that it lacks are 0.
///
/// Errors: the disk is full or cannot reserve, or there is no memory.
pub fn map(file: &File) -> io::Result<&'static Words> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, BYTES as u64)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. It is page-aligned, as long as the array,
    // backed by the file's reserved block, and never unmapped. Any bits are a value of AtomicU64, through which alone this
    // process and the others use it.
    unsafe {
        let start = rustix::mm::mmap(
            std::ptr::null_mut(),
            BYTES,
            access,
            MapFlags::SHARED,
            file,
            0,
        )?;
        Ok(&*start.cast::<Words>())
    }
}

/// What this process forks from now on does not have `words`, and must not use them.
///
/// Errors: the kernel refuses; then it has them.
pub fn keep_from_forks(words: &'static Words) -> io::Result<()> {
    let start = std::ptr::from_ref(words).cast_mut().cast();
    // SAFETY: the whole page of a mapping that `map` has made; this process keeps it, and its forks are told above.
    unsafe { rustix::mm::madvise(start, BYTES, Advice::LinuxDontFork)? };
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn file() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        rustix::fs::memfd_create("numbers", flags).unwrap().into()
    }

    #[test]
    fn who_maps_a_file_sees_what_others_count_in_it() {
        let file = file();
        let (one, other) = (map(&file).unwrap(), map(&file).unwrap());
        one[3].fetch_add(4, Ordering::Relaxed);
        other[3].fetch_add(5, Ordering::Relaxed);
        assert_eq!(one[3].load(Ordering::Relaxed), 9);
        assert_eq!(other[WORDS - 1].load(Ordering::Relaxed), 0);
        assert_eq!(file.metadata().unwrap().len(), BYTES as u64);
    }

    /// By the flag that the kernel shows of the mapping: `dc`, do not copy on fork.
    #[test]
    fn a_fork_does_not_have_what_is_kept_from_it() {
        let words = map(&file()).unwrap();
        let is_kept = || {
            let address = format!("{:x}-", std::ptr::from_ref(words) as usize);
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let own = maps.split_once(&address).unwrap().1;
            let flags = own.lines().find_map(|line| line.strip_prefix("VmFlags:"));
            flags.unwrap().split_whitespace().any(|flag| flag == "dc")
        };
        assert!(!is_kept());
        keep_from_forks(words).unwrap();
        assert!(is_kept(), "VM_DONTCOPY is not set");
    }
}
