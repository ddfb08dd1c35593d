//! The node's own credentials: a file as `docker login` writes it, for pulls that bring none.
//!
//! Called by: the pull, each time, so that a changed file counts at once.
//! Invariants: credentials go to the registry of their entry only; an entry for a longer path wins; the file may be read by
//! root alone, and no error shows a part of it; programs that it names (credential helpers) are not executed.
//! Not here: how credentials are used.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::endpoint::Credentials;
use crate::error::Error;
use crate::reference::ImageRef;
use crate::regular_file;

/// Largest file. Bytes.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credentials of the file at `path` for the image `name`, for whoever is not a pull; `None` if it has none, or is not there.
/// Blocking. Errors: the name is none; others than its owner may read or write the file, or it is not as `docker login` writes it.
pub fn credentials_in(path: &Path, name: &str) -> Result<Option<Credentials>, Error> {
    credentials(path, &name.parse()?)
}

/// The credentials of the file at `path` for `reference`; `None` if it has none, or is not there. Blocking.
///
/// Errors: others than root may read or write it, or it is not as `docker login` writes it.
pub(crate) fn credentials(path: &Path, reference: &ImageRef) -> Result<Option<Credentials>, Error> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let bad = |problem: &str| Error::invalid(path.display().to_string(), problem);
    // The parser's own message may repeat a secret.
    let file: AuthFile = serde_json::from_str(&text).map_err(|error| {
        bad(&format!(
            "line {}: it is not JSON as `docker login` writes it",
            error.line()
        ))
    })?;
    let name = reference.name();
    let fits = |key: &str| {
        name == key
            || name
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    let entries = file
        .auths
        .iter()
        .map(|(key, entry)| (registry_of(key), entry));
    let best = entries
        .filter(|(key, _)| fits(key))
        .max_by_key(|(key, _)| key.len());
    match best {
        Some((key, entry)) => entry.credentials().ok_or_else(|| {
            bad(&format!(
                "its entry for {key} has an auth that is not the base64 of `user:password`"
            ))
        }),
        None => Ok(None),
    }
}

/// The registry, perhaps with a path, of a key: a host, a path below one, or a URL.
fn registry_of(key: &str) -> String {
    let key = key
        .split_once("://")
        .map_or(key, |(_, rest)| rest)
        .trim_end_matches('/');
    // Of a registry's URL; below a path it is the name of a repository.
    let key = ["/v1", "/v2"]
        .iter()
        .find_map(|version| key.strip_suffix(version))
        .filter(|host| !host.contains('/'))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

impl Entry {
    /// `None`: it cannot be read. `Some(None)`: it has no credentials, as where a helper keeps them.
    fn credentials(&self) -> Option<Option<Credentials>> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Some(Some(Credentials::Bearer(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Some(Some(Credentials::Identity(token)));
        }
        if let Some(username) = given(&self.username) {
            let password = self.password.clone();
            return Some(Some(Credentials::Basic { username, password }));
        }
        if self.auth.is_empty() {
            return Some(None);
        }
        let text = String::from_utf8(STANDARD.decode(&self.auth).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        let (username, password) = (
            username.to_owned(),
            password.trim_end_matches('\0').to_owned(),
        );
        Some(Some(Credentials::Basic { username, password }))
    }
}

/// The text of the file; judged on the open file.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let failed = |error| Error::io("read", path, error);
    let (file, facts) = match regular_file::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mode = facts.mode();
    if !facts.is_file()
        || (facts.uid() != 0 && facts.uid() != rustix::process::geteuid().as_raw())
        || mode & 0o007 != 0
        || (mode & 0o070 != 0 && facts.gid() != 0)
    {
        let problem = format!(
            "it has mode {:04o} and owner {}:{}, must be a file that only root can read and write",
            mode & 0o7777,
            facts.uid(),
            facts.gid()
        );
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    let mut text = String::new();
    if file
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)? as u64
        > MAX_BYTES
    {
        let problem = format!("it holds more than {MAX_BYTES} bytes");
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    Ok(Some(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, text: &str, mode: u32) -> Self {
            let path =
                std::env::temp_dir().join(format!("images-auth-{name}-{}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Self(path)
        }

        fn of(&self, reference: &str) -> Result<Option<Credentials>, Error> {
            credentials(&self.0, &reference.parse().unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn entries_are_found_by_registry_and_by_the_longest_path() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmE6Yg=="},
            "r.io": {"username": "all", "password": "p"},
            "r.io/team": {"auth": "dGVhbTp0"},
            "r.io/lab/v2": {"username": "lab", "password": "l"},
            "https://old.io/v2/": {"username": "old", "password": "o"},
            "tokens.io:5000": {"identitytoken": "i"},
            "helped.io": {}
        }, "credHelpers": {"r.io": "evil"}, "HttpHeaders": {}}"#;
        let file = Scratch::new("found", text, 0o600);
        for (reference, expected) in [
            ("busybox", basic("hub", "a:b")),
            ("r.io/other/app", basic("all", "p")),
            ("r.io/team/app:v1", basic("team", "t")),
            ("r.io/teams/app:v1", basic("all", "p")),
            ("r.io/lab/v2/app", basic("lab", "l")),
            ("r.io/lab/app", basic("all", "p")),
            ("old.io/app", basic("old", "o")),
            ("tokens.io:5000/a", Some(Credentials::Identity("i".into()))),
            ("tokens.io/a", None),
            ("r.io.evil/a", None),
            ("helped.io/a", None),
        ] {
            assert_eq!(file.of(reference).unwrap(), expected, "{reference}");
        }
        let absent = credentials(Path::new("/nowhere/auth.json"), &"a".parse().unwrap());
        assert_eq!(absent.unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_refused_without_its_secrets() {
        let good = r#"{"auths": {"r.io": {"username": "u", "password": "canary"}}}"#;
        for (name, text, mode) in [
            ("readable", good, 0o644),
            ("writable", good, 0o602),
            ("json", r#"{"auths": {"r.io": {"password": "canary""#, 0o600),
            (
                "type",
                r#"{"auths": {"r.io": {"auth": {"canary": 1}}}}"#,
                0o600,
            ),
            (
                "base64",
                r#"{"auths": {"r.io": {"auth": "?canary"}}}"#,
                0o600,
            ),
        ] {
            let refused = Scratch::new(name, text, mode)
                .of("r.io/a")
                .unwrap_err()
                .to_string();
            assert!(
                refused.contains("images-auth") && !refused.contains("canary"),
                "{refused}"
            );
        }
    }
}
