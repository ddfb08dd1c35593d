//! Parses and prints the three names content has: [`ImageRef`] (what people write), [`Digest`] (what bytes
//! are) and [`ImageId`] (what the kubelet compares).
//!
//! Place in the flow: first; every other module takes these types and never a bare string.
//! Invariants: a [`Digest`] is sha256 and 64 lower-case hex digits, so it is safe as a file name; an
//! [`ImageRef`] is always fully qualified, and has exactly one of tag and digest.
//! Not here: network, disk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest repository name accepted, registry included. Bytes; as in the distribution specification.
const NAME_MAX_BYTES: usize = 255;

/// Why a text is not a reference, a digest or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}: {problem}")]
pub struct BadName {
    text: String,
    wanted: &'static str,
    problem: &'static str,
}

impl BadName {
    fn new(text: &str, wanted: &'static str, problem: &'static str) -> Self {
        let text = text.chars().take(300).collect();
        Self {
            text,
            wanted,
            problem,
        }
    }
}

/// The SHA-256 of some bytes. Printed `sha256:<64 hex>`; no other algorithm is accepted anywhere.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: Box<str>,
}

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hasher(Sha256::new_with_prefix(bytes))
    }

    /// The digest of everything a hasher has seen.
    pub(crate) fn from_hasher(hasher: Sha256) -> Self {
        let mut text = String::with_capacity(Self::PREFIX.len() + 64);
        text.push_str(Self::PREFIX);
        for byte in hasher.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self { text: text.into() }
    }

    /// The 64 hex digits without the algorithm: safe as a file name.
    pub fn hex(&self) -> &str {
        &self.text[Self::PREFIX.len()..]
    }

    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |problem| BadName::new(text, "a digest", problem);
        let hex = text
            .strip_prefix(Self::PREFIX)
            .ok_or_else(|| bad("only `sha256:` followed by 64 hex digits is accepted"))?;
        if !is_lower_hex(hex, 64) {
            return Err(bad("sha256 needs 64 lower-case hex digits"));
        }
        Ok(Self { text: text.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.text.into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text[..Self::PREFIX.len() + 12])
    }
}

/// The id of an image, which covers all of its content: the digest of its config where that ties the layers, else the
/// digest of its manifest (see `docs/operate/registries.md`). What CRI calls `Image.id` and `image_ref`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The id that is this digest.
    pub fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The digest that it is.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl FromStr for ImageId {
    type Err = BadName;

    /// Accepts `sha256:<hex>` and the bare 64 hex digits.
    fn from_str(text: &str) -> Result<Self, BadName> {
        if is_lower_hex(text, 64) {
            return format!("{}{text}", Digest::PREFIX).parse().map(Self);
        }
        text.parse().map(Self)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What an [`ImageRef`] points at inside its repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A name that the registry may move.
    Tag(String),
    /// Fixed content: a manifest or an index.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A fully qualified image reference: `registry/repository` and a tag or a digest.
///
/// Written forms are completed as every container tool completes them: `docker.io`, `library/` and `latest`
/// are added where missing. With both a tag and a digest the digest wins and the tag is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    target: Target,
}

impl ImageRef {
    /// The registry's host, with its port if one was written: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or the digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `registry/repository`, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether a name is written with a tag or a digest.
    pub(crate) fn has_target(text: &str) -> bool {
        let (_, tag, digest) = split_target(text);
        tag.is_some() || digest.is_some()
    }

    /// The same repository at a digest: `registry/repository@sha256:<hex>`.
    pub fn at(&self, digest: &Digest) -> Self {
        Self {
            target: Target::Digest(digest.clone()),
            ..self.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.target, Target::Tag(_)) {
            ':'
        } else {
            '@'
        };
        write!(
            f,
            "{}/{}{separator}{}",
            self.registry, self.repository, self.target
        )
    }
}

impl FromStr for ImageRef {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |problem| BadName::new(text, "an image reference", problem);
        let (name, tag, digest) = split_target(text);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag is 1 to 128 letters, digits, `_`, `.`, `-`, not `.` or `-` first",
            ));
        }
        if is_lower_hex(name, 64) {
            return Err(bad("64 hex digits alone are an image id, not a repository"));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return Err(bad("the registry is not a host name with an optional port"));
        }
        if registry.len() + repository.len() >= NAME_MAX_BYTES
            || !repository.split('/').all(is_component)
        {
            return Err(bad(
                "a repository is lower-case letters, digits and single separators, 255 bytes at most",
            ));
        }
        let target = match digest {
            Some(digest) => Target::Digest(
                digest
                    .parse()
                    .map_err(|BadName { problem, .. }| bad(problem))?,
            ),
            None => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            registry,
            repository,
            target,
        })
    }
}

/// Name, tag and digest of `name[:tag][@digest]`. A colon before a slash begins a port.
fn split_target(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag), digest),
        _ => (rest, None, digest),
    }
}

/// Splits `name` where every container tool does: the first part is a registry only if it looks like a host.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" {
        "docker.io"
    } else {
        registry
    };
    if registry == "docker.io" && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// One part of a repository path: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_plain = |b: Option<u8>| b.is_some_and(plain);
    let separators = part.split(|c: char| plain(c as u8) && c.is_ascii());
    ends_plain(part.bytes().next())
        && ends_plain(part.bytes().next_back())
        && separators
            .filter(|run| !run.is_empty())
            .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or("bad"))),
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let host_is_good = if registry.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    };
    host_is_good
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{HEX}");
        for (written, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("acme/web", "docker.io/acme/web:latest".to_owned()),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest".to_owned(),
            ),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("[::1]/a:x", "[::1]/a:x".to_owned()),
            (
                "ghcr.io/a__b/c--d/e.f_g",
                "ghcr.io/a__b/c--d/e.f_g:latest".to_owned(),
            ),
            (
                &format!("a@{digest}"),
                format!("docker.io/library/a@{digest}"),
            ),
            (&format!("r.io/a:tag@{digest}"), format!("r.io/a@{digest}")),
        ] {
            let parsed: ImageRef = written.parse().unwrap();
            assert_eq!(parsed.to_string(), full, "from {written}");
            assert_eq!(
                full.parse::<ImageRef>().unwrap(),
                parsed,
                "{full} is stable"
            );
        }
    }

    #[test]
    fn bad_references_are_refused() {
        let long = format!("r.io/{}", "a".repeat(255));
        for written in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:-x",
            "a:b:c/",
            "a b",
            "a\n",
            "a\0b",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a.-b",
            "r.io/",
            "r.io:99999/a",
            "r.io:x/a",
            "r.io:/a",
            "-r.io/a",
            "r..io/a",
            "[::1/a",
            "[zz]:1/a",
            "[::1]x/a",
            "r.io/../a",
            "r.io/a/../b",
            "a@sha256:abc",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "é",
            "r.io/é",
            HEX,
            &long,
            &format!("a@sha256:{}", HEX.to_uppercase()),
            &format!("a@sha256:{HEX}@x"),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(
                written.parse::<ImageRef>().is_err(),
                "{written:?} was accepted"
            );
        }
    }

    #[test]
    fn digests_are_sha256_and_lower_case() {
        assert_eq!(Digest::of(b"test").hex(), HEX);
        assert_eq!(
            format!("sha256:{HEX}").parse::<Digest>().unwrap(),
            Digest::of(b"test")
        );
        for text in [
            "",
            "sha256:",
            HEX,
            "sha512:00",
            "sha256:../../x",
            &format!("sha256:{}", HEX.to_uppercase()),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
        }
        assert_eq!(
            HEX.parse::<ImageId>().unwrap().digest(),
            &Digest::of(b"test")
        );
    }
}
