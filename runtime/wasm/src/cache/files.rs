//! The cache's files: temporary files, the stamp that shows whether a file changed, and the MAC key.
//!
//! Called by the cache. Invariant: no symbolic link is followed. It must not know what the files hold.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use coracle_spec::error::{Context as _, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    ctime: (i64, i64),
    size: u64,
}

/// A half-written file; removed on drop unless it was renamed.
pub(super) struct Temporary {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl Temporary {
    pub(super) fn rename(&self, to: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename no file has this name.
        let _ = fs::remove_file(&self.path);
    }
}

pub(super) fn open_read(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

pub(super) fn stamp(file: &File) -> Option<Stamp> {
    file.metadata().ok().map(|m| Stamp {
        inode: m.ino(),
        ctime: (m.ctime(), m.ctime_nsec()),
        size: m.len(),
    })
}

pub(super) fn stamp_of(path: &Path) -> Option<Stamp> {
    stamp(&open_read(path).ok()?)
}

pub(super) fn key(dir: &Path) -> Result<[u8; 32]> {
    let path = dir.join("key");
    let what = || format!("make the compile cache's key {}", path.display());
    let mut key = [0; 32];
    let read = || format!("read {}", path.display());
    match open_read(&path) {
        Ok(mut file) => {
            if file.metadata().during(read)?.len() == 32 {
                file.read_exact(&mut key).during(read)?;
                return Ok(key);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        // Another key would make all entries wrong.
        Err(error) => return Err(error).during(read),
    }
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).during(what)?;
    let _ = fs::remove_file(&path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&path)
        .during(what)?;
    file.write_all(&key).during(what)?;
    // Synced, once per node: after a power loss the file could hold zeros, and zeros are a key that everybody knows.
    file.sync_all().during(what)?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .during(what)?;
    Ok(key)
}
