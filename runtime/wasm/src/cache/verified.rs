//! Looks up an entry of the cache, and verifies it.
//!
//! Called by the cache. Invariants: an entry is removed only if it is wrong: what cannot be read now, because the daemon
//! has no descriptor or the disk fails, stays, and the caller gets the error.
//! It must not know how entries are made.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::files::{open_read, stamp, stamp_of};
use super::{CompileCache, Compiled, EntryKey, Label, lock};
use crate::inspect::ModuleInfo;
use coracle_spec::error::{Context as _, Result};
use coracle_spec::id::hex;

impl CompileCache {
    /// The verified entry, or `None` if there is none that passes verification. Blocks. Errors: it cannot be read now.
    pub(super) fn find(&self, hash: &str, digest: &str) -> Result<Option<Arc<Compiled>>> {
        let at = (hash.to_owned(), digest.to_owned());
        // Before it is read: what is being verified must not be the first to make room.
        self.is_wanted(&at);
        let (code, label) = self.paths(hash, digest);
        let known = lock(&self.entries).get(&at).cloned();
        if let Some(known) = known
            && stamp_of(&known.code).is_some_and(|now| now == known.stamp)
        {
            return Ok(Some(known));
        }
        if let Some(entry) = self.verify(&at, &code, &label)? {
            let entry = Arc::new(entry);
            lock(&self.entries).insert(at.clone(), entry.clone());
            return Ok(Some(entry));
        }
        if code.exists() {
            self.counters.refusal();
            tracing::warn!(
                digest,
                engine = hash,
                "compiled code failed verification, compiling it again"
            );
        }
        let _ = fs::remove_file(&code);
        let _ = fs::remove_file(&label);
        self.forget(|known| *known != at);
        Ok(None)
    }

    fn verify(&self, at: &EntryKey, code: &Path, label: &Path) -> Result<Option<Compiled>> {
        let what = |path: &Path| format!("read compiled code {}", path.display());
        let Some(text) = present(fs::read(label)).during(|| what(label))? else {
            return Ok(None);
        };
        let Ok(label) = serde_json::from_slice::<Label>(&text) else {
            return Ok(None);
        };
        let Some(mut file) = present(open_read(code)).during(|| what(code))? else {
            return Ok(None);
        };
        let before = stamp(&file);
        let sum = sum(&mut file).during(|| what(code))?;
        let good = sum == label.code_sha256
            && self.mac(at, &label.info, &sum).as_deref() == Some(label.mac.as_str());
        let stamp = before.filter(|before| good && stamp(&file) == Some(*before));
        Ok(stamp.map(|stamp| Compiled {
            info: label.info.bounded(),
            code: code.into(),
            stamp,
        }))
    }

    pub(super) fn mac(
        &self,
        at: &EntryKey,
        info: &ModuleInfo,
        code_sha256: &str,
    ) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        let info = serde_json::to_string(info).ok()?;
        mac.update(
            format!("coracle-cwasm-1\n{}\n{}\n{code_sha256}\n{info}", at.0, at.1).as_bytes(),
        );
        Some(hex(&mac.finalize().into_bytes()))
    }
}

/// SHA-256 of a file from where it is.
fn sum(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(file, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// What was read, or `None` if there is no such file; a link is none.
fn present<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}
