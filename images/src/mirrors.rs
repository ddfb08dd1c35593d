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
//! has it, and for hosts in `plain_http`; a client certificate is presented to hosts that the operator has named alone
//! (containerd presents that of `_default` to every registry); a file that others than root can write, or that has an
//! unknown setting, fails the pulls of its registry and no others.
//! Not here: requests; the settings of a file ([`hosts_file`]); certificates ([`certificates`]).

mod certificates;
mod hosts_file;
mod table;

use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use crate::error::Error;
use crate::proxy::ProxyUrl;
use crate::regular_file;
pub(crate) use certificates::ClientIdentity;
use hosts_file::Found;

/// A larger file is refused. Bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One host, with its capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// `host` or `host:port`.
    pub(crate) authority: String,
    /// The path of the API's root, without a slash at its end: `/v2`, or another.
    pub(crate) api: String,
    /// The path between the API's root and the repository: empty, or `.../`.
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
    /// The certificate to present.
    pub(crate) identity: Option<ClientIdentity>,
    /// Header fields of every request to it, and to no other host.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// How long to wait for a connection, if not as for all hosts.
    pub(crate) dial_timeout: Option<Duration>,
    /// The proxy of this host, in place of those of the configuration.
    pub(crate) proxy: Option<ProxyUrl>,
    /// Whether to send it the credentials of the pull.
    pub(crate) gets_credentials: bool,
    /// The operator's file names it, not only somebody's image reference.
    pub(crate) is_configured: bool,
}

impl Upstream {
    /// The registry of a reference, when no file says anything else.
    fn plain(registry: &str, plain_http: bool) -> Self {
        Self {
            authority: host_of(registry).to_owned(),
            api: "/v2".to_owned(),
            plain_http,
            may_resolve: true,
            may_pull: true,
            gets_credentials: true,
            ..Self::default()
        }
    }

    /// The path before `/v2`; of an API with another root that root and `?`, which no path has.
    pub(crate) fn prefix(&self) -> String {
        match self.api.strip_suffix("/v2") {
            Some(prefix) => prefix.to_owned(),
            None => format!("{}?", self.api),
        }
    }
}

/// The host on which a registry answers: that of Docker Hub has another name than its images.
pub(crate) fn host_of(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
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
        Some(found) if found.text.is_empty() => found.certificates_alone(registry, is_plain),
        Some(found) => found.upstreams(registry, is_plain),
        None => Ok(vec![Upstream::plain(registry, is_plain(registry))]),
    }
}

/// What a file of this text says of a registry. For fuzzing. Errors: as [`upstreams`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn of_text(text: &str, registry: &str) -> Result<Vec<Upstream>, Error> {
    let found = Found {
        path: std::path::PathBuf::from("hosts.toml"),
        text: text.to_owned(),
        is_default: false,
    };
    found.upstreams(registry, |_| false)
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
        let text = read(&path)?.unwrap_or_default();
        let is_default = name == "_default";
        return Ok(Some(Found {
            path,
            text,
            is_default,
        }));
    }
    Ok(None)
}

/// The text of a file, if it is there.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let invalid = |problem| Error::invalid(path.display().to_string(), problem);
    let bytes = regular_file::read_trusted(path, MAX_BYTES).map_err(invalid)?;
    let text = bytes.map(String::from_utf8).transpose();
    text.map_err(|_| invalid("it is not UTF-8".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
