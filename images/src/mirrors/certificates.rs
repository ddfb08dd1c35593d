//! The certificates of hosts: those to trust, and the one that this node presents.
//!
//! Called by: the parent, for the files that a `hosts.toml` names, and for those of a directory without one, which are
//! named as Docker has them. Invariants: a file is bounded, has what it was named for, and nobody but root can write it, nor
//! read it if it has a key; a key is never printed.
//! Blocking. Not here: what a certificate is worth.

use std::fmt;
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
    let pem = present(path, regular_file::read_trusted(path, MAX_BYTES))?;
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
    let secret = |path: &Path| present(path, regular_file::read_secret(path, MAX_BYTES));
    let certificate = authority(path)?;
    let pem = match key {
        None => {
            has_key(path, &certificate)?;
            secret(path)?
        }
        Some(key) => {
            let pem = secret(key)?;
            has_key(key, &pem)?;
            [certificate, pem].join(&b'\n')
        }
    };
    Ok(ClientIdentity(pem))
}

/// Errors: [`Error::Invalid`]: there is no private key in the text of the file.
fn has_key(path: &Path, pem: &[u8]) -> Result<(), Error> {
    match has(pem, "PRIVATE KEY-----") {
        true => Ok(()),
        false => Err(Error::invalid(
            path.display().to_string(),
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

/// A file that is named somewhere, so that it has to be there.
fn present(path: &Path, read: Result<Option<Vec<u8>>, String>) -> Result<Vec<u8>, Error> {
    let absent = || "it is not there".to_owned();
    let bytes = read.and_then(|bytes| bytes.ok_or_else(absent));
    bytes.map_err(|problem| Error::invalid(path.display().to_string(), problem))
}
