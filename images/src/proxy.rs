//! Proxies for registries: which proxy the request for a URL goes through, if any.
//!
//! Called by: the daemon, which builds the [`Proxies`] of its configuration; [`crate::mirrors`] for the proxy of one host;
//! the HTTP clients of a pull, for each URL.
//! Invariants: this machine is never reached through a proxy; no proxy's user or password is printed. Pure.
//! Not here: connections; the addresses that a registry may lead to.

mod bypass;

use std::fmt;

use reqwest::Url;

use crate::error::Error;
use crate::loopback::is_loopback;
use bypass::Bypass;

/// The URL of a proxy. `Debug` and `Display` show neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ProxyUrl(Url);

impl ProxyUrl {
    /// Reads `http://` or `https://`, user and password if needed, host and port; without a scheme it is http.
    ///
    /// Errors: what is wrong with it, without user and password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let whole = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let url = Url::parse(&whole).map_err(|error| format!("is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!(
                "has the scheme {:?}, must be http or https",
                url.scheme()
            ));
        }
        let is_bare = matches!(url.path(), "" | "/");
        if !is_bare || url.query().is_some() || url.fragment().is_some() {
            return Err("has more than scheme, user, password, host and port".to_owned());
        }
        Ok(Self(url))
    }

    /// With user and password.
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// The name or address of its host.
    fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.host())?;
        match self.0.port() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// The proxies for registries; the default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://` URLs.
    http: Option<ProxyUrl>,
    /// For `https://` URLs.
    https: Option<ProxyUrl>,
    /// What is reached without them.
    bypass: Vec<Bypass>,
}

impl Proxies {
    /// One proxy for all registries but those in `no_proxy`: names, `.suffix`, addresses, networks, each with a port if
    /// only that is meant, or `*`.
    ///
    /// Errors: [`Error::Invalid`] that names the setting, without user and password.
    pub fn new(proxy: &str, no_proxy: &[String]) -> Result<Self, Error> {
        let proxy = ProxyUrl::parse(proxy);
        let proxy = proxy.map_err(|problem| Error::invalid("images.proxy", problem))?;
        Ok(Self {
            bypass: bypasses(no_proxy)?,
            ..Self::only(proxy)
        })
    }

    /// The proxies that `HTTPS_PROXY` and `HTTP_PROXY` name, or `https_proxy` and `http_proxy`, for all registries but
    /// those in `NO_PROXY` (or `no_proxy`), a list with commas, and in the setting `no_proxy`. `variable` looks up a
    /// variable. What cannot be read in `NO_PROXY` is logged and ignored, as by every program that reads it.
    ///
    /// Errors: [`Error::Invalid`] that names the variable or the setting.
    pub fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
        no_proxy: &[String],
    ) -> Result<Self, Error> {
        let value = |name: &str| {
            let found = variable(name).or_else(|| variable(&name.to_lowercase()));
            found.filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &str| {
            let parsed = value(name).map(|value| ProxyUrl::parse(&value)).transpose();
            parsed.map_err(|problem| Error::invalid(format!("{name} of the environment"), problem))
        };
        let mut bypass = bypasses(no_proxy)?;
        let listed = value("NO_PROXY").unwrap_or_default();
        let entries = listed.split(',').map(str::trim);
        for entry in entries.filter(|entry| !entry.is_empty()) {
            match Bypass::parse(entry) {
                Some(rule) => bypass.push(rule),
                None => tracing::warn!(entry, "an entry of NO_PROXY is ignored: it is no host"),
            }
        }
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            bypass,
        })
    }

    /// One proxy for everything but this machine.
    pub(crate) fn only(proxy: ProxyUrl) -> Self {
        Self {
            http: Some(proxy.clone()),
            https: Some(proxy),
            bypass: Vec::new(),
        }
    }

    /// The proxy that a request for `url` goes through.
    pub(crate) fn of(&self, url: &Url) -> Option<&ProxyUrl> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref()?,
            _ => self.http.as_ref()?,
        };
        let host = url.host_str()?.trim_end_matches('.');
        let port = url.port_or_known_default();
        let is_direct =
            is_this_machine(host) || self.bypass.iter().any(|rule| rule.contains(host, port));
        (!is_direct).then_some(proxy)
    }

    /// True if `host` is the name or address of one of the proxies.
    pub(crate) fn is_proxy(&self, host: &str) -> bool {
        let proxies = self.http.iter().chain(&self.https);
        let mut hosts = proxies.map(ProxyUrl::host);
        hosts.any(|proxy| proxy.eq_ignore_ascii_case(host))
    }

    /// True if every request is sent directly.
    pub(crate) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }
}

fn bypasses(no_proxy: &[String]) -> Result<Vec<Bypass>, Error> {
    let read = |entry: &String| {
        let problem = || format!("{entry:?} is no host, .suffix, address, network or *");
        Bypass::parse(entry).ok_or_else(|| Error::invalid("images.no_proxy", problem()))
    };
    no_proxy.iter().map(read).collect()
}

/// True for what the kernel or every resolver takes for this machine.
fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<std::net::IpAddr>();
    let is_own = address.is_ok_and(|address| {
        let address = address.to_canonical();
        address.is_loopback() || address.is_unspecified()
    });
    is_own || is_loopback(host) || host.ends_with(".localhost")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
