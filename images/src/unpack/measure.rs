//! Measures what an unpacker has written, which its own report need not say: who it unpacks for may have taken it over.
//!
//! Called by: [`super::run`], on a thread that may block, after the unpacker has ended; nobody else writes there. And by
//! [`crate::self_check`], which compares the tree with what was found then.
//! Invariants: no link is followed; as many entries are looked at as the image may have, and no more; at most two
//! directories are open, and a number is kept for each level, however deep the tree is.
//! Not here: what follows from it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use sha2::{Digest as _, Sha256};

/// Parts of an inode: it may have several names, and each counts as its part.
const WHOLE: u64 = 1 << 32;
/// Bytes of a block, whatever the file system's is. Source: stat(2), st_blocks.
const BLOCK_BYTES: u64 = 512;

/// What lies in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Bytes of files, without holes and without the rest of their last block.
    pub(super) bytes: u64,
    /// Inodes, the directory itself among them.
    pub(super) inodes: u64,
    /// Names in it and below it.
    pub(super) names: u64,
    /// Stands for all names in it with their kinds, modes, owners and, but for directories, sizes. It is recorded: it never
    /// changes its meaning.
    pub(crate) tree: u64,
}

/// Measures `root`, up to `most` names; `None` if there are more. Errors: it cannot be read.
pub(crate) fn measure(root: &OwnedFd, most: u64) -> io::Result<Option<Measured>> {
    let mut sum = Measured {
        inodes: 1,
        ..Measured::default()
    };
    let mut parts = 0_u64;
    // Where to go on in each directory above, and what stands for it.
    let mut above: Vec<(i64, u64)> = Vec::new();
    let mut directory = 0;
    let mut here = Dir::new(subdirectory(root.as_fd(), c".")?)?;
    loop {
        let Some(entry) = here.read() else {
            let Some((offset, parent_directory)) = above.pop() else {
                sum.inodes += (parts + WHOLE / 2) / WHOLE;
                return Ok(Some(sum));
            };
            let parent = subdirectory(here.fd()?, c"..")?;
            here = Dir::new(parent)?;
            here.seek(offset)?;
            directory = parent_directory;
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
        let own = stands_for(directory, name, &stat);
        // The order of names is the file system's.
        sum.tree = sum.tree.wrapping_add(own);
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            sum.inodes += 1;
            above.push((entry.offset(), directory));
            directory = own;
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

/// A number for a name in a directory, which has a number of its own.
fn stands_for(directory: u64, name: &std::ffi::CStr, stat: &Stat) -> u64 {
    let size = match FileType::from_raw_mode(stat.st_mode).is_dir() {
        true => 0,
        false => u64::try_from(stat.st_size).unwrap_or(0),
    };
    let mut hasher = Sha256::new();
    for number in [directory, size] {
        hasher.update(number.to_le_bytes());
    }
    for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
        hasher.update(number.to_le_bytes());
    }
    hasher.update(name.to_bytes());
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hasher.finalize());
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
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
    fn what_stands_for_a_tree_changes_with_every_name_and_its_facts() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let tree = || {
            let open = OwnedFd::from(fs::File::open(root).unwrap());
            measure(&open, 99).unwrap().unwrap().tree
        };
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), [1; 5000]).unwrap();
        fs::write(root.join("a/other"), "x").unwrap();
        let whole = tree();
        // Another order of the names, other times, the same tree.
        fs::rename(root.join("a/other"), root.join("a/aside")).unwrap();
        let renamed = tree();
        fs::rename(root.join("a/aside"), root.join("a/other")).unwrap();
        assert_eq!((tree() == whole, renamed == whole), (true, false));
        let file = root.join("a/b/file");
        let changed = |what: &str, change: &dyn Fn(), undo: &dyn Fn()| {
            change();
            assert_ne!(tree(), whole, "{what}");
            undo();
            assert_eq!(tree(), whole, "{what} is undone");
        };
        let cut = |size| {
            fs::File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(size)
        };
        changed("a size", &|| cut(0).unwrap(), &|| cut(5000).unwrap());
        let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let was = fs::metadata(&file).unwrap().permissions().mode();
        changed("a mode", &|| mode(0o4711), &|| mode(was));
        let owner = |id| chown(root.join("a/b"), Some(id), Some(id)).unwrap();
        let own = rustix::process::getuid().as_raw();
        if own == 0 {
            changed("an owner", &|| owner(5), &|| owner(0));
        }
        let moved = root.join("a/file");
        let rename = |from: &std::path::Path, to: &std::path::Path| fs::rename(from, to).unwrap();
        changed("a directory", &|| rename(&file, &moved), &|| {
            rename(&moved, &file)
        });
        let gone = |there: bool| match there {
            true => fs::write(root.join("a/other"), "x").unwrap(),
            false => fs::remove_file(root.join("a/other")).unwrap(),
        };
        changed("a missing name", &|| gone(false), &|| gone(true));
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
