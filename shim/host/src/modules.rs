//! Digests of modules in an image other than its main one: each file is read once.
//!
//! Called by: [`super::plan`] at create, exec and probe. Calls: the file system.
//! Invariants: a file is hashed as a stream and only up to the largest allowed module; one at a time, in the order of
//! requests; callers with the same file share the result, and one that leaves does not affect the others.
//! Must not know: finding the file, compiling it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_lifecycle::{Error, Kind};
use coracle_spec::id::hex;
use sha2::{Digest as _, Sha256};

use super::image_files::read_images;
use super::io_error;

/// Most cached files; all are dropped when there are more.
const MAX_KNOWN: usize = 4_096;

/// The identity of a file's contents: device, inode, change time, size.
type Stamp = (u64, u64, i64, i64, u64);

/// The known digests. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Modules {
    known: Arc<Mutex<HashMap<Stamp, String>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Modules {
    /// SHA-256 of the file at `path`, 64 digits. Errors: Invalid when it is not a regular file or larger than `limit`
    /// bytes.
    pub(super) async fn digest(&self, path: &Path, limit: u64) -> Result<String, Error> {
        let own = path.to_owned();
        let opened = read_images("opening a module", move || open(&own, limit));
        let (_, stamp) = opened.await?;
        if let Some(known) = lock(&self.known).get(&stamp) {
            return Ok(known.clone());
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (known, own) = (Arc::clone(&self.known), path.to_owned());
        read_images("reading a module", move || {
            let _turn = turn;
            let (file, stamp) = open(&own, limit)?;
            if let Some(known) = lock(&known).get(&stamp) {
                return Ok(known.clone());
            }
            let digest = hash(&own, file, limit)?;
            let mut known = lock(&known);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(stamp, digest.clone());
            Ok(digest)
        })
        .await
    }
}

fn open(path: &Path, limit: u64) -> Result<(File, Stamp), Error> {
    let failed = |error| io_error(format!("open module {}", path.display()), error);
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() > limit {
        return Err(too_large(path, found.len(), limit));
    }
    let stamp = (
        found.dev(),
        found.ino(),
        found.ctime(),
        found.ctime_nsec(),
        found.len(),
    );
    Ok((file, stamp))
}

fn hash(path: &Path, file: File, limit: u64) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    let count = io::copy(&mut file.take(limit + 1), &mut hasher)
        .map_err(|error| io_error(format!("read module {}", path.display()), error))?;
    if count > limit {
        return Err(too_large(path, count, limit));
    }
    Ok(hex(&hasher.finalize()))
}

fn too_large(path: &Path, bytes: u64, limit: u64) -> Error {
    let text = format!(
        "module {} holds {bytes} bytes, wasm.max_module_bytes is {limit}",
        path.display()
    );
    Error::new(Kind::Invalid, text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn a_file_is_read_once_until_it_changes_and_never_when_it_is_too_large() {
        let dir = Scratch::new("modules");
        let path = dir.0.join("m.wasm");
        std::fs::write(&path, b"\0asm").unwrap();
        let modules = Modules::default();
        let of = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        assert_eq!(modules.digest(&path, 100).await.unwrap(), of(b"\0asm"));
        // The next caller gets the cached digest.
        for known in lock(&modules.known).values_mut() {
            *known = "remembered".to_owned();
        }
        assert_eq!(modules.digest(&path, 100).await.unwrap(), "remembered");
        std::fs::write(&path, b"\0asm, changed").unwrap();
        let changed = modules.digest(&path, 100).await.unwrap();
        assert_eq!(changed, of(b"\0asm, changed"));
        let refused = modules.digest(&path, 5).await.unwrap_err().to_string();
        assert!(
            refused.contains("13 bytes") && refused.contains("is 5"),
            "{refused}"
        );
        assert!(modules.digest(&dir.0, 100).await.is_err());
    }
}
