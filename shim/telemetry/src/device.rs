//! The file system of the writable layers, and names of block devices.
//!
//! Called by: `containers`, on the blocking pool. Invariant: a device without a name is shown by its numbers.
//! Must not know: containers.

use std::collections::HashMap;
use std::path::Path;

/// A file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileSystem {
    /// Its device, as [`Names`] calls it.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its inodes.
    pub inodes: u64,
    /// Those of them that are free.
    pub free_inodes: u64,
}

impl FileSystem {
    /// The one that holds `path`.
    pub fn of(path: &Path, names: &mut Names) -> Option<FileSystem> {
        let device = rustix::fs::stat(path).ok()?.st_dev;
        let facts = rustix::fs::statvfs(path).ok()?;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Some(FileSystem {
            device: names.of(major, minor),
            bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
            inodes: facts.f_files,
            free_inodes: facts.f_ffree,
        })
    }
}

/// Names of block devices by their numbers, each looked up once.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<(u32, u32), String>);

impl Names {
    /// `/dev/NAME`, or `MAJOR:MINOR` if the device has no name. Source: sysfs, `/sys/dev/block/MAJOR:MINOR/uevent`.
    pub fn of(&mut self, major: u32, minor: u32) -> String {
        let known = self.0.entry((major, minor));
        known
            .or_insert_with(|| {
                let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
                let text = std::fs::read_to_string(uevent).unwrap_or_default();
                let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
                match name {
                    Some(name) => format!("/dev/{name}"),
                    None => format!("{major}:{minor}"),
                }
            })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_name_is_shown_by_its_numbers() {
        let mut names = Names::default();
        assert_eq!(names.of(0, 4_000), "0:4000");
        let proc = FileSystem::of(Path::new("/proc"), &mut names).map(|found| found.device);
        assert!(proc.is_some_and(|device| device.starts_with("0:")));
        assert!(FileSystem::of(Path::new("/nowhere"), &mut names).is_none());
    }
}
