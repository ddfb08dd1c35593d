//! Which file systems images and the writable layers of containers are on.
//!
//! Called by: [`super`], once; a file system that is mounted later counts from the next start. Invariant: what cannot be
//! looked at counts as on the file system of the root directory. Must not know: pods, images.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The file systems below one root directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disks {
    /// A directory on that of the writable layers.
    pub layers: PathBuf,
    /// Whether images are on another one.
    pub are_split: bool,
}

impl Disks {
    /// Looks at the directories below `root` that an operator may mount something at.
    pub(super) fn of(root: &Path) -> Self {
        let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
        let whole = device(root);
        let of = |name: &str| device(&root.join(name)).or(whole);
        let layers = match of("pods") == whole {
            true => root.to_owned(),
            false => root.join("pods"),
        };
        let are_split = of("images") != of("pods");
        Self { layers, are_split }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_file_system_are_not_split_and_mounted_ones_are() {
        let root = std::env::temp_dir().join(format!("coracle-disks-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        let whole = Disks {
            layers: root.clone(),
            are_split: false,
        };
        assert_eq!(Disks::of(&root), whole);
        fs::create_dir(root.join("images")).unwrap();
        fs::create_dir(root.join("pods")).unwrap();
        assert_eq!(Disks::of(&root), whole);
        // A link to another file system, instead of a mount.
        fs::remove_dir(root.join("pods")).unwrap();
        std::os::unix::fs::symlink("/proc", root.join("pods")).unwrap();
        let split = Disks {
            layers: root.join("pods"),
            are_split: true,
        };
        assert_eq!(Disks::of(&root), split);
        fs::remove_dir_all(&root).unwrap();
    }
}
