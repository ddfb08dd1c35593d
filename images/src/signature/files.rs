//! Which policy file holds for pods of a namespace: its own, or the node's.
//!
//! Called by: [`super::rules`] for pulls, [`super::stored`] for containers. Blocks on the files.
//! Invariant: a namespace whose policy cannot be found gets no image; it never gets the node's policy instead.
//! Not here: what a policy says.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::policy::Policy;
use crate::config::ImagesConfig;
use crate::error::Error;

/// The longest namespace: that of a DNS label.
const MAX_NAMESPACE_BYTES: usize = 63;
/// The longest name of somebody else that a message shows.
const MAX_SHOWN: usize = 200;

/// The node's policy, for namespaces that have none for themselves. `None`: none is configured.
pub(super) fn node_policy(config: &ImagesConfig) -> Result<Option<(PathBuf, Policy)>, Error> {
    let Some(path) = &config.signature_policy else {
        return Ok(None);
    };
    match read(path)? {
        Some(policy) => Ok(Some((path.clone(), policy))),
        None => Err(absent(path)),
    }
}

/// The policy that `namespace` has for itself.
pub(super) fn namespace_policy(
    config: &ImagesConfig,
    namespace: &str,
) -> Result<Option<(PathBuf, Policy)>, Error> {
    let Some(dir) = config.signature_policy_dir.as_ref() else {
        return Ok(None);
    };
    if namespace.is_empty() {
        return Ok(None);
    }
    if !is_namespace(namespace) {
        let problem = format!("{:?} is no name of a namespace", shown(namespace));
        return Err(Error::signature(&dir.display().to_string(), problem));
    }
    let path = dir.join(format!("{namespace}.json"));
    match read(&path)? {
        Some(policy) => Ok(Some((path, policy))),
        None => check_absent(dir, &path).map(|()| None),
    }
}

/// Errors: the namespace may well have a policy, which cannot be found: a link leads nowhere, or the directory is not there.
fn check_absent(dir: &Path, path: &Path) -> Result<(), Error> {
    let refused =
        |path: &Path, problem: String| Err(Error::signature(&path.display().to_string(), problem));
    match std::fs::metadata(dir) {
        Ok(facts) if facts.is_dir() => {}
        Ok(_) => {
            let problem = "images.signature_policy_dir is no directory".to_owned();
            return refused(dir, problem);
        }
        Err(error) => {
            let problem = format!("images.signature_policy_dir cannot be read: {error}");
            return refused(dir, problem);
        }
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => refused(path, format!("it cannot be read: {error}")),
        Ok(_) => refused(path, "it is a link to what is not there".to_owned()),
    }
}

/// Reads a policy; `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Policy>, Error> {
    Policy::read(path).map_err(|problem| Error::signature(&path.display().to_string(), problem))
}

/// The error for a policy that has to be there.
pub(super) fn absent(path: &Path) -> Error {
    Error::signature(&path.display().to_string(), "it is not there".to_owned())
}

/// What a name of a file may be made of.
fn is_namespace(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAMESPACE_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

/// The beginning of a text, for messages.
pub(super) fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_SHOWN)]
}
