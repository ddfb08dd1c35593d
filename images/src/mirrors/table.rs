//! The tables of a `hosts.toml`, and the forms that their values may have.
//!
//! Called by: the parent, which reads a file into a [`HostTable`]. Invariant: an unknown key or form is an error with its
//! place in the file, whose text shows no password. Not here: other files, what a setting does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::proxy::ProxyUrl;

/// The settings of one host. At the top of the file they are those of `server`, and only there are `server` and `host`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HostTable {
    pub server: Option<Spanned<String>>,
    pub host: BTreeMap<Spanned<String>, HostTable>,
    /// None means all.
    pub capabilities: Vec<Capability>,
    pub skip_verify: bool,
    pub override_path: bool,
    pub ca: Paths,
    pub client: Option<Spanned<Clients>>,
    pub header: BTreeMap<Spanned<String>, Values>,
    pub dial_timeout: Option<DialTimeout>,
    pub proxy: Option<HostProxy>,
}

/// What a host may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Capability {
    Resolve,
    Pull,
    /// Accepted and ignored: nothing is pushed from here.
    Push,
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "resolve" => Ok(Self::Resolve),
            "pull" => Ok(Self::Pull),
            "push" => Ok(Self::Push),
            _ => Err(format!(
                "unknown capability `{text}`, must be `pull`, `resolve` or `push`"
            )),
        }
    }
}

/// Paths of files, relative to the file that names them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a path or a list of paths")]
pub(super) enum Paths {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Paths {
    pub(super) fn list(self) -> Vec<PathBuf> {
        match self {
            Self::One(path) => vec![path],
            Self::Many(paths) => paths,
        }
    }
}

/// The files of client certificates.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "must be a path, a list of paths, or a list of pairs of a certificate's and a key's path"
)]
pub(super) enum Clients {
    One(PathBuf),
    Many(Vec<ClientFiles>),
}

/// The file or files of one client certificate and its key.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ClientFiles {
    /// Both in one file.
    Both(PathBuf),
    /// The key's path may be empty: then it is in the first file.
    Pair(PathBuf, PathBuf),
}

impl Clients {
    /// Path of the certificate, and path of the key if it is in another file, of each.
    pub(super) fn list(self) -> Vec<(PathBuf, Option<PathBuf>)> {
        let files = match self {
            Self::One(path) => return vec![(path, None)],
            Self::Many(files) => files,
        };
        let pair = |files| match files {
            ClientFiles::Both(path) => (path, None),
            ClientFiles::Pair(path, key) => {
                (path, Some(key).filter(|key| !key.as_os_str().is_empty()))
            }
        };
        files.into_iter().map(pair).collect()
    }
}

/// The values of one header field.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(super) enum Values {
    One(String),
    Many(Vec<String>),
}

impl Values {
    pub(super) fn list(self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

/// How long to wait for a connection, as Go writes durations: `1s`, `500ms`, `1m30s`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct DialTimeout(pub Duration);

impl TryFrom<String> for DialTimeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match duration(&text) {
            Some(duration) if !duration.is_zero() => Ok(Self(duration)),
            _ => Err(format!(
                "{text:?} is no duration above zero, such as \"1s\", \"500ms\" or \"1m30s\""
            )),
        }
    }
}

/// A sum of numbers with units.
fn duration(text: &str) -> Option<Duration> {
    let is_number = |letter: char| letter.is_ascii_digit() || letter == '.';
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|letter| !is_number(letter))?);
        let (unit, next) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// The proxy of one host.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct HostProxy(pub ProxyUrl);

impl TryFrom<String> for HostProxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let proxy = ProxyUrl::parse(&text).map_err(|problem| format!("the proxy {problem}"))?;
        Ok(Self(proxy))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("1s", 1000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("2000us", 2),
            ("1h0m0.001s", 3_600_001),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in [
            "1",
            "s",
            "1 s",
            "-1s",
            "1d",
            "1.2.3s",
            "1e400h",
            "99999999999999999999h",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
        for text in ["", "0s"] {
            assert!(DialTimeout::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
