//! Measures what an unpacker has written, which its own report need not say: who it unpacks for may have taken it over.
//!
//! Called by: [`super::run`], on a thread that may block, after the unpacker has ended; nobody else writes there.
//! Invariants: no link is followed; as many entries are looked at as the image may have, and no more; at most two
//! directories are open, and a number is kept for each level, however deep the tree is.
//! Not here: what follows from it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};

/// Parts of an inode: it may have several names, and each counts as its part.
const WHOLE: u64 = 1 << 32;
/// Bytes of a block, whatever the file system's is. Source: stat(2), st_blocks.
const BLOCK_BYTES: u64 = 512;

/// What lies in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Bytes of files, without holes and without the rest of their last block.
    pub(super) bytes: u64,
    /// Inodes, the directory itself among them.
    pub(super) inodes: u64,
    /// Names in it and below it.
    pub(super) names: u64,
}

/// Measures `root`, up to `most` names; `None` if there are more. Errors: it cannot be read.
pub(super) fn measure(root: &OwnedFd, most: u64) -> io::Result<Option<Measured>> {
    let mut sum = Measured {
        inodes: 1,
        ..Measured::default()
    };
    let mut parts = 0_u64;
    // Where to go on in each directory above.
    let mut above: Vec<i64> = Vec::new();
    let mut here = Dir::new(subdirectory(root.as_fd(), c".")?)?;
    loop {
        let Some(entry) = here.read() else {
            let Some(offset) = above.pop() else {
                sum.inodes += (parts + WHOLE / 2) / WHOLE;
                return Ok(Some(sum));
            };
            let parent = subdirectory(here.fd()?, c"..")?;
            here = Dir::new(parent)?;
            here.seek(offset)?;
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        sum.names += 1;
        if sum.names > most {
            return Ok(None);
        }
        let stat = statat(here.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            sum.inodes += 1;
            above.push(entry.offset());
            let below = subdirectory(here.fd()?, name)?;
            here = Dir::new(below)?;
            continue;
        }
        let links = (stat.st_nlink as u64).max(1);
        parts += WHOLE / links;
        sum.bytes += data(&stat) / links;
    }
}

fn subdirectory(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

fn data(stat: &Stat) -> u64 {
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return 0;
    }
    let [size, blocks] = [stat.st_size, stat.st_blocks].map(|n| u64::try_from(n).unwrap_or(0));
    size.min(blocks.saturating_mul(BLOCK_BYTES))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn everything_is_counted_once_and_nothing_outside() {
        let scratch = tempfile::tempdir().unwrap();
        let (outside, root) = (scratch.path().join("outside"), scratch.path().join("root"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("c")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), [1; 5000]).unwrap();
        fs::write(root.join("a/b/file"), [1; 5000]).unwrap();
        for name in ["c/one", "a/two"] {
            fs::hard_link(root.join("a/b/file"), root.join(name)).unwrap();
        }
        symlink(&outside, root.join("link")).unwrap();
        symlink("..", root.join("c/up")).unwrap();
        let holes = fs::File::create(root.join("c/holes")).unwrap();
        holes.set_len(1 << 30).unwrap();
        let open = OwnedFd::from(fs::File::open(&root).unwrap());
        let found = measure(&open, 9).unwrap().unwrap();
        // A third of the file for each of its names.
        assert!((4998..=5000).contains(&found.bytes), "{found:?}");
        // Four directories, the file, two links, the holes; each has a name but the root, and the file has three.
        assert_eq!((found.inodes, found.names), (8, 9));
        assert_eq!(measure(&open, 8).unwrap(), None);
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_allow_is_measured() {
        let scratch = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs::File::open(scratch.path()).unwrap());
        let mut at = root.try_clone().unwrap();
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&at, c"d", Mode::from_raw_mode(0o755)).unwrap();
            at = subdirectory(at.as_fd(), c"d").unwrap();
        }
        let found = measure(&root, 10_000).unwrap().unwrap();
        let removed = coracle_tree::remove(&scratch.path().join("d"));
        assert_eq!((found.inodes, found.names, found.bytes), (5_001, 5_000, 0));
        removed.unwrap();
    }
}
