//! The certificates of hosts: those to trust, and the one that this node presents.
//!
//! Called by: the parent, for the files that a `hosts.toml` names, and for those of a directory without one, which are
//! named as Docker has them. Invariants: a file is bounded, and has what it was named for; a key is never printed.
//! Blocking. Not here: what a certificate is worth.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::MAX_BYTES;
use crate::error::Error;
use crate::regular_file;

/// A client certificate with its chain and key, PEM. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClientIdentity(Vec<u8>);

impl ClientIdentity {
    /// Certificates and key.
    pub(crate) fn pem(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(redacted)")
    }
}

/// The certificates in a file. Errors: [`Error::Io`], [`Error::Invalid`] if there is none.
pub(super) fn authority(path: &Path) -> Result<Vec<u8>, Error> {
    let pem = read(path)?;
    match has(&pem, "CERTIFICATE-----") {
        true => Ok(pem),
        false => Err(Error::invalid(
            path.display().to_string(),
            "it has no certificate in PEM",
        )),
    }
}

/// A client certificate, and its key from another file if there is one.
///
/// Errors: [`Error::Io`], [`Error::Invalid`] if certificate or key are missing.
pub(super) fn identity(path: &Path, key: Option<&Path>) -> Result<ClientIdentity, Error> {
    let mut pem = authority(path)?;
    let key_path = key.unwrap_or(path);
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend_from_slice(&read(key)?);
    }
    match has(&pem, "PRIVATE KEY-----") {
        true => Ok(ClientIdentity(pem)),
        false => Err(Error::invalid(
            key_path.display().to_string(),
            "it has no private key in PEM without a password",
        )),
    }
}

/// The paths of a directory's certificates: `NAME.crt` to trust; `NAME.cert` to present, with the key in `NAME.key` if
/// that exists. Sorted. Errors: [`Error::Io`].
pub(super) fn in_directory(dir: &Path) -> Result<CertificateFiles, Error> {
    let failed = |error| Error::io("read", dir, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut found = CertificateFiles::default();
    for path in &paths {
        match path.extension().and_then(|end| end.to_str()) {
            Some("crt") => found.authorities.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = paths.contains(&key).then_some(key);
                found.clients.push((path.clone(), key));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Files of certificates by their use.
#[derive(Default)]
pub(super) struct CertificateFiles {
    pub authorities: Vec<PathBuf>,
    /// With the key's path, if that is another.
    pub clients: Vec<(PathBuf, Option<PathBuf>)>,
}

fn has(pem: &[u8], what: &str) -> bool {
    pem.windows(what.len()).any(|part| part == what.as_bytes())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::io("read", path, error);
    let invalid = |problem| Error::invalid(path.display().to_string(), problem);
    let (file, facts) = regular_file::open(path).map_err(failed)?;
    if !facts.is_file() {
        return Err(invalid("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > MAX_BYTES {
        return Err(invalid(format!("it holds more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}
