//! The mirrors of a registry, from containerd's `hosts.toml` files.
//!
//! A pull calls [`upstreams`] once, at its start, so an edited file counts from the next pull on;
//! [`crate::registry`] then tries them in this order.
//!
//! ```text
//! DIR/registry.example_5000_/hosts.toml, else DIR/registry.example:5000/hosts.toml, else DIR/_default/hosts.toml
//! [host."..."] tables in the order of the file, then `server`, which is the registry itself unless set
//! ```
//! Invariants: the last upstream is the registry, or the `server` of its own file; only that one and mirrors on the
//! registry's own host get its credentials (containerd sends them to every mirror); plain http is used only if the URL
//! has it, and for hosts in `plain_http`; a file that others than root can write, or that has an unknown setting,
//! fails the pulls of its registry and no others.
//! Not here: requests.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::error::Error;
use crate::regular_file;

/// A larger file is refused. Bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One host, with its capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// `host` or `host:port`.
    pub(crate) authority: String,
    /// The path between the authority and `/v2/`: empty, or `/...`.
    pub(crate) prefix: String,
    /// The path between `/v2/` and the repository: empty, or `.../`.
    pub(crate) repository_prefix: String,
    /// Whether to use http instead of https.
    pub(crate) plain_http: bool,
    /// Whether it may resolve tags.
    pub(crate) may_resolve: bool,
    /// Whether it may serve content by digest.
    pub(crate) may_pull: bool,
    /// Whether to accept any certificate.
    pub(crate) skip_verify: bool,
    /// More certificates to trust, PEM.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// Whether to send it the credentials of the pull.
    pub(crate) gets_credentials: bool,
    /// The operator's file names it, not only somebody's image reference.
    pub(crate) is_configured: bool,
}

impl Upstream {
    /// The registry of a reference, when no file says anything else.
    fn plain(registry: &str, plain_http: bool) -> Self {
        Self {
            authority: registry.to_owned(),
            plain_http,
            may_resolve: true,
            may_pull: true,
            gets_credentials: true,
            ..Self::default()
        }
    }
}

/// The settings of one host. The same keys at the top of the file are those of `server`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostTable {
    capabilities: Option<Vec<Capability>>,
    skip_verify: bool,
    override_path: bool,
    ca: Authorities,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostsFile {
    server: Option<Spanned<String>>,
    capabilities: Option<Vec<Capability>>,
    skip_verify: bool,
    override_path: bool,
    ca: Authorities,
    host: BTreeMap<Spanned<String>, HostTable>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Resolve,
    Pull,
    /// Accepted and ignored: nothing is pushed from here.
    Push,
}

/// Paths of PEM files, relative to the file that names them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Authorities {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for Authorities {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// The hosts for images of `registry`, in order. `dir` is the directory of the files, if there is one;
/// `is_plain` decides whether an authority without a scheme uses http.
///
/// Errors: [`Error::Invalid`] naming file and line, [`Error::Io`].
pub(crate) fn upstreams(
    dir: Option<&Path>,
    registry: &str,
    is_plain: impl Fn(&str) -> bool,
) -> Result<Vec<Upstream>, Error> {
    let found = match dir {
        Some(dir) => find(dir, registry)?,
        None => None,
    };
    match found {
        Some(found) => found.upstreams(registry, is_plain),
        None => Ok(vec![Upstream::plain(registry, is_plain(registry))]),
    }
}

/// What a file of this text says of a registry. For fuzzing. Errors: as [`upstreams`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn of_text(text: &str, registry: &str) -> Result<Vec<Upstream>, Error> {
    let found = Found {
        path: PathBuf::from("hosts.toml"),
        text: text.to_owned(),
        is_default: false,
    };
    found.upstreams(registry, |_| false)
}

/// A file that is about a registry.
struct Found {
    path: PathBuf,
    text: String,
    /// It is the file of all registries that have none.
    is_default: bool,
}

/// The first directory that exists decides, whether or not a file is in it.
fn find(dir: &Path, registry: &str) -> Result<Option<Found>, Error> {
    let with_port = match registry.rsplit_once(':') {
        Some((host, port)) => format!("{host}_{port}_"),
        None => registry.to_owned(),
    };
    for name in [with_port.as_str(), registry, "_default"] {
        if !dir.join(name).is_dir() {
            continue;
        }
        let path = dir.join(name).join("hosts.toml");
        let text = match read(&path)? {
            Some(text) => text,
            None => return Ok(None),
        };
        let is_default = name == "_default";
        return Ok(Some(Found {
            path,
            text,
            is_default,
        }));
    }
    Ok(None)
}

/// The bytes of a file of certificates.
fn read_certificate(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::io("read", path, error);
    let (mut file, facts) = regular_file::open(path).map_err(failed)?;
    if !facts.is_file() {
        let problem = "it is not a regular file";
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The text of a file, if it is there; judged on the open file, as the configuration itself is.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let failed = |error| Error::io("read", path, error);
    let (file, facts) = match regular_file::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let group_writes = facts.mode() & 0o020 != 0 && facts.gid() != 0;
    if !facts.is_file() || facts.uid() != 0 || facts.mode() & 0o002 != 0 || group_writes {
        let problem = format!(
            "it has mode {:04o} and owner {}:{}, must be a file that only root can write",
            facts.mode() & 0o7777,
            facts.uid(),
            facts.gid()
        );
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    let mut text = String::new();
    let mut limited = file.take(MAX_BYTES + 1);
    if limited.read_to_string(&mut text).map_err(failed)? as u64 > MAX_BYTES {
        let problem = format!("it holds more than {MAX_BYTES} bytes");
        return Err(Error::invalid(path.display().to_string(), problem));
    }
    Ok(Some(text))
}

impl Found {
    fn upstreams(
        &self,
        registry: &str,
        is_plain: impl Fn(&str) -> bool,
    ) -> Result<Vec<Upstream>, Error> {
        let file: HostsFile = toml::from_str(&self.text).map_err(|error| {
            let lines: Vec<_> = error.message().lines().collect();
            self.wrong(error.span().map_or(0, |span| span.start), lines.join("; "))
        })?;
        let mut hosts: Vec<_> = file.host.into_iter().collect();
        hosts.sort_by_key(|(url, _)| url.span().start);
        let mut upstreams = Vec::with_capacity(hosts.len() + 1);
        for (url, table) in hosts {
            let mut upstream = self.host(&url, table, &is_plain)?;
            upstream.gets_credentials = upstream.authority == registry;
            upstreams.push(upstream);
        }
        let own = HostTable {
            capabilities: file.capabilities,
            skip_verify: file.skip_verify,
            override_path: file.override_path,
            ca: file.ca,
        };
        let mut server = match &file.server {
            Some(url) => self.host(url, own, &is_plain)?,
            None => {
                let scheme = if is_plain(registry) { "http" } else { "https" };
                let url = format!("{scheme}://{registry}");
                self.host(&Spanned::new(0..0, url), own, &is_plain)?
            }
        };
        server.gets_credentials = !self.is_default || server.authority == registry;
        server.is_configured = !self.is_default || file.server.is_some();
        upstreams.push(server);
        Ok(upstreams)
    }

    fn host(
        &self,
        url: &Spanned<String>,
        table: HostTable,
        is_plain: impl Fn(&str) -> bool,
    ) -> Result<Upstream, Error> {
        let bad = |problem: &str| self.bad_host(url, problem);
        let (scheme, authority, path) = split(url.get_ref()).ok_or_else(|| {
            bad("is not the URL of a host: scheme, host, port and path, without user and query")
        })?;
        let plain_http = match scheme {
            Some("http") => true,
            Some("https") => false,
            None => is_plain(authority),
            Some(_) => return Err(bad("is neither http nor https")),
        };
        let (prefix, repository_prefix) = place(path, table.override_path).ok_or_else(|| {
            bad("overrides the path with one that does not begin with /v2, which is not supported")
        })?;
        let may = |what| {
            let listed = table.capabilities.as_ref();
            listed.is_none_or(|listed| listed.contains(&what))
        };
        Ok(Upstream {
            authority: authority.to_owned(),
            prefix,
            repository_prefix,
            plain_http,
            may_resolve: may(Capability::Resolve),
            may_pull: may(Capability::Pull),
            skip_verify: table.skip_verify,
            authorities: self.certificates(table.ca)?,
            gets_credentials: false,
            is_configured: true,
        })
    }

    fn bad_host(&self, url: &Spanned<String>, problem: &str) -> Error {
        // The text before an @ may be a password.
        let text = url.get_ref();
        let shown = text
            .rsplit_once('@')
            .map_or(text.as_str(), |(_, host)| host);
        self.wrong(url.span().start, format!("`{shown}` {problem}"))
    }

    fn certificates(&self, given: Authorities) -> Result<Vec<Vec<u8>>, Error> {
        let paths = match given {
            Authorities::One(path) => vec![path],
            Authorities::Many(paths) => paths,
        };
        let beside = self.path.parent().unwrap_or(Path::new("/"));
        paths
            .iter()
            .map(|path| beside.join(path))
            .map(|path| read_certificate(&path))
            .collect()
    }

    /// What is wrong in this file, and in which line of it.
    fn wrong(&self, offset: usize, problem: String) -> Error {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Error::invalid(format!("{}:{line}", self.path.display()), problem)
    }
}

/// Scheme, if there is one, authority and path of a host's URL; nothing for a URL with user or query, or without a host.
fn split(url: &str) -> Option<(Option<&str>, &str, &str)> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let is_odd = |c: char| c.is_whitespace() || matches!(c, '@' | '?' | '#' | '\\' | '"');
    let is_host = !authority.is_empty() && !rest.contains(is_odd);
    is_host.then_some((scheme, authority, path))
}

/// What a URL's path puts before `/v2/` and after it; `None` if it cannot be had.
fn place(path: &str, is_override: bool) -> Option<(String, String)> {
    let path = path.trim_end_matches('/');
    if !is_override {
        // As containerd does, a path that ends in /v2 already is taken as it is.
        let prefix = path.strip_suffix("/v2").unwrap_or(path);
        return Some((prefix.to_owned(), String::new()));
    }
    match path.strip_prefix("/v2")? {
        "" => Some(Default::default()),
        inner if inner.starts_with('/') => {
            Some((String::new(), format!("{}/", inner.trim_matches('/'))))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
