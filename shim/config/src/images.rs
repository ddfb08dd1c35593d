//! Checks `[images]`.
//!
//! Called by: [`super::check`]. Pure. Must not know: which names registries accept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Images;
use super::file::ImagesFile;
use super::values::{Invalid, KIB, MIB, TIB, directory, invalid, plain_absolute, seconds, within};

/// Where the proxies for registries come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Proxy {
    /// Registries are reached without one.
    None,
    /// The URL of the proxy for all registries; it may have a user and a password.
    Url(String),
    /// `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the daemon's environment.
    Environment,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Url(_) => "Url(redacted)",
            Self::Environment => "Environment",
        })
    }
}

/// Checks every value of the table.
pub(super) fn check(file: &ImagesFile) -> Result<Images, Invalid> {
    plain_http(&file.plain_http)?;
    let layers = within("images.max_layers", file.max_layers, 1..=4_096)?;
    Ok(Images {
        plain_http: file.plain_http.clone(),
        registry_config: directory("images.registry_config", &file.registry_config)?,
        auth_file: optional("images.auth_file", &file.auth_file)?,
        signature_policy: optional("images.signature_policy", &file.signature_policy)?,
        signature_policy_dir: optional("images.signature_policy_dir", &file.signature_policy_dir)?,
        proxy: proxy(file)?,
        no_proxy: no_proxy(&file.no_proxy)?,
        preload_dir: directory("images.preload_dir", &file.preload_dir)?,
        preload_timeout: seconds("images.preload_timeout_s", file.preload_timeout_s)?,
        pinned: pinned(&file.pinned)?,
        keep_blobs: file.keep_blobs,
        pull_idle_timeout: seconds("images.pull_idle_timeout_s", file.pull_idle_timeout_s)?,
        pull_min_bytes_per_s: within(
            "images.pull_min_bytes_per_s",
            file.pull_min_bytes_per_s,
            0..=1024 * MIB,
        )?,
        pull_timeout: pull_timeout(file.pull_timeout_s)?,
        max_manifest_bytes: within(
            "images.max_manifest_bytes",
            file.max_manifest_bytes,
            64 * KIB..=64 * MIB,
        )?,
        max_metadata_bytes: within(
            "images.max_metadata_bytes",
            file.max_metadata_bytes,
            MIB..=TIB,
        )?,
        max_layers: usize::try_from(layers).unwrap_or(usize::MAX),
        max_layer_bytes: within("images.max_layer_bytes", file.max_layer_bytes, MIB..=TIB)?,
        max_unpacked_bytes: within(
            "images.max_unpacked_bytes",
            file.max_unpacked_bytes,
            MIB..=TIB,
        )?,
        max_entries: within("images.max_entries", file.max_entries, 1..=100_000_000)?,
    })
}

/// A path that may be empty.
fn optional(key: &'static str, path: &Path) -> Result<Option<PathBuf>, Invalid> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    match plain_absolute(path) {
        Some(path) => Ok(Some(path)),
        None => invalid(
            key,
            format!("is {path:?}, must be an absolute path without `..`, or empty"),
        ),
    }
}

/// The proxy, which comes from one place. A URL's text may be a password: no message repeats it.
fn proxy(file: &ImagesFile) -> Result<Proxy, Invalid> {
    let key = "images.proxy";
    match (file.proxy.as_str(), file.proxy_from_environment) {
        ("", false) => Ok(Proxy::None),
        ("", true) => Ok(Proxy::Environment),
        (_, true) => invalid(
            key,
            "is set, and images.proxy_from_environment is true; leave one of them out",
        ),
        (url, false) => {
            let rest = url.strip_prefix("http://");
            let rest = rest.or_else(|| url.strip_prefix("https://"));
            let authority = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
            let host = authority.map(|text| text.rsplit_once('@').map_or(text, |(_, host)| host));
            let is_host = |host: &str| {
                !host.is_empty()
                    && !host.starts_with(':')
                    && !host.contains(['/', '?', '#', '\\'])
                    && !host.contains(char::is_whitespace)
            };
            match host.is_some_and(is_host) {
                true => Ok(Proxy::Url(url.to_owned())),
                false => invalid(
                    key,
                    "is no URL of a proxy, must be http:// or https://, user:password@ if needed, host and :port",
                ),
            }
        }
    }
}

/// The URL of a proxy, for people to read.
pub(super) fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://REDACTED@{host}")
        }
        None => url.to_owned(),
    }
}

fn no_proxy(entries: &[String]) -> Result<Vec<String>, Invalid> {
    for entry in entries {
        let name = entry.strip_prefix("*.").unwrap_or(entry);
        let is_host = !name.is_empty() && !name.contains([',', '@', '*']) && !name.contains("//");
        if entry != "*" && (!is_host || name.contains(char::is_whitespace)) {
            return invalid(
                "images.no_proxy",
                format!(
                    "has {entry:?}, must be hosts, .suffixes, addresses or networks, with :port if only that is meant, or *"
                ),
            );
        }
    }
    Ok(entries.to_vec())
}

fn pull_timeout(seconds: u64) -> Result<Option<Duration>, Invalid> {
    let seconds = within("images.pull_timeout_s", seconds, 0..=604_800)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn plain_http(registries: &[String]) -> Result<(), Invalid> {
    for registry in registries {
        if registry.is_empty()
            || registry.contains(['/', '@', '*'])
            || registry.contains(char::is_whitespace)
        {
            return invalid(
                "images.plain_http",
                format!(
                    "has {registry:?}, must be registries as `host` or `host:port`, without scheme and path"
                ),
            );
        }
    }
    Ok(())
}

/// The patterns for pinned images, each a name or the beginning of one and `*`.
fn pinned(patterns: &[String]) -> Result<Vec<String>, Invalid> {
    for pattern in patterns {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() || name.contains('*') || name.contains(char::is_whitespace) {
            return invalid(
                "images.pinned",
                format!(
                    "has {pattern:?}, must be names of images, or beginnings of names with one * at the end"
                ),
            );
        }
    }
    Ok(patterns.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::super::sources::Source;
    use super::super::{Overrides, check_all};
    use super::*;

    fn images(text: &str) -> Result<Images, String> {
        let text = format!("[images]\n{text}\n");
        let path = "config.toml".into();
        let checked = check_all(&[Source { path, text }], &Overrides::default());
        let images = checked.map(|(_, config)| config.images);
        images.map_err(|error| error.to_string())
    }

    #[test]
    fn the_proxy_comes_from_one_place_and_its_password_is_not_shown() {
        assert_eq!(images("").unwrap().proxy, Proxy::None);
        let from_environment = "proxy_from_environment = true";
        assert_eq!(images(from_environment).unwrap().proxy, Proxy::Environment);
        let url = "http://me:canary@proxy.example:3128";
        let set = images(&format!("proxy = \"{url}\"")).unwrap();
        assert_eq!(set.proxy, Proxy::Url(url.to_owned()));
        assert!(!format!("{set:?}").contains("canary"), "{set:?}");
        assert_eq!(without_password(url), "http://REDACTED@proxy.example:3128");
        assert_eq!(without_password("http://p:1"), "http://p:1");
        let both = images(&format!("proxy = \"{url}\"\n{from_environment}")).unwrap_err();
        let start = "config.toml:2: images.proxy is set, and images.proxy_from_environment is true";
        assert!(both.starts_with(start), "{both}");
    }

    #[test]
    fn proxies_that_are_none_are_refused_without_their_password() {
        for good in ["http://p", "https://p:1/", "http://[::1]:3128"] {
            images(&format!("proxy = \"{good}\"")).unwrap();
        }
        for bad in [
            "p:3128",
            "socks5://me:canary@p",
            "http://me:canary@",
            "http://:1",
            "http://p/x",
        ] {
            let refused = images(&format!("proxy = \"{bad}\"")).unwrap_err();
            assert!(
                refused.starts_with("config.toml:2: images.proxy is no URL"),
                "{refused}"
            );
            assert!(!refused.contains("canary"), "{refused}");
        }
        images("no_proxy = [\"*\", \".a\", \"*.a\", \"a:1\", \"10.0.0.0/8\", \"::1\"]").unwrap();
        for bad in ["", "a,b", "http://a", "a*", "a b"] {
            let refused = images(&format!("no_proxy = [\"{bad}\"]")).unwrap_err();
            let start = format!("config.toml:2: images.no_proxy has {bad:?}");
            assert!(refused.starts_with(&start), "{refused}");
        }
    }
}
