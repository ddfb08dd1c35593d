//! One `hosts.toml`, or the directory where it could be: turned into the hosts of a registry.
//!
//! Called by: the parent, which finds it. Invariants: an error names file and line; no text of an error shows a password.
//! Not here: which file is a registry's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderName, HeaderValue};
use toml::Spanned;

use super::table::{Capability, Clients, HostTable, Values};
use super::{ClientIdentity, Upstream, certificates, host_of};
use crate::error::Error;

/// A file that is about a registry.
pub(super) struct Found {
    /// It may be absent: then only its directory is about the registry.
    pub path: PathBuf,
    /// Empty if it is absent.
    pub text: String,
    /// It is the file of all registries that have none.
    pub is_default: bool,
}

impl Found {
    /// The hosts that the text lists, in order. Errors: as [`super::upstreams`].
    pub(super) fn upstreams(
        &self,
        registry: &str,
        is_plain: impl Fn(&str) -> bool,
    ) -> Result<Vec<Upstream>, Error> {
        let mut file: HostTable = toml::from_str(&self.text).map_err(|error| {
            let lines: Vec<_> = error.message().lines().map(without_values).collect();
            self.wrong(error.span().map_or(0, |span| span.start), lines.join("; "))
        })?;
        let mut hosts: Vec<_> = std::mem::take(&mut file.host).into_iter().collect();
        hosts.sort_by_key(|(url, _)| url.span().start);
        let mut upstreams = Vec::with_capacity(hosts.len() + 1);
        for (url, table) in hosts {
            self.has_no_hosts(&table)?;
            let mut upstream = self.host(&url, table, &is_plain)?;
            upstream.gets_credentials = upstream.authority == host_of(registry);
            upstreams.push(upstream);
        }
        let named = file.server.take();
        let is_named = named.is_some();
        if self.is_default && !is_named {
            self.shows_nobody(&file)?;
        }
        let server = named.unwrap_or_else(|| {
            let scheme = if is_plain(registry) { "http" } else { "https" };
            Spanned::new(0..0, format!("{scheme}://{registry}"))
        });
        let mut server = self.host(&server, file, &is_plain)?;
        server.gets_credentials = !self.is_default || server.authority == host_of(registry);
        server.is_configured = !self.is_default || is_named;
        upstreams.push(server);
        Ok(upstreams)
    }

    /// The registry itself, with the certificates that lie in its directory. Errors: as [`super::upstreams`].
    pub(super) fn certificates_alone(
        &self,
        registry: &str,
        is_plain: impl Fn(&str) -> bool,
    ) -> Result<Vec<Upstream>, Error> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let mut files = certificates::in_directory(dir)?;
        if self.is_default && !files.clients.is_empty() {
            // containerd presents it to whatever host an image's name has.
            tracing::warn!(directory = %dir.display(), registry, "the client certificate for all registries is not presented: name the host, by a directory or in hosts.toml");
            files.clients.clear();
        }
        let read = |path: &PathBuf| certificates::authority(path);
        Ok(vec![Upstream {
            authorities: files
                .authorities
                .iter()
                .map(read)
                .collect::<Result<_, _>>()?,
            identity: identity(&dir.display().to_string(), &files.clients)?,
            ..Upstream::plain(registry, is_plain(registry))
        }])
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
        let (api, repository_prefix) = place(path, table.override_path);
        let may = |what| table.capabilities.is_empty() || table.capabilities.contains(&what);
        let authorities = table.ca.list().into_iter();
        let authorities = authorities.map(|path| certificates::authority(&self.beside(&path)));
        Ok(Upstream {
            authority: host_of(authority).to_owned(),
            api,
            repository_prefix,
            plain_http,
            may_resolve: may(Capability::Resolve),
            may_pull: may(Capability::Pull),
            skip_verify: table.skip_verify,
            authorities: authorities.collect::<Result<_, _>>()?,
            identity: table
                .client
                .map_or(Ok(None), |client| self.client(client))?,
            headers: self.headers(table.header)?,
            dial_timeout: table.dial_timeout.map(|timeout| timeout.0),
            proxy: table.proxy.map(|proxy| proxy.0),
            gets_credentials: false,
            is_configured: true,
        })
    }

    /// Refuses what would show who this node is to every host that the name of an image has.
    fn shows_nobody(&self, file: &HostTable) -> Result<(), Error> {
        let is_secret = |name: &&Spanned<String>| {
            let name = name.get_ref().to_ascii_lowercase();
            ["authorization", "cookie"].contains(&name.as_str())
        };
        let client = file
            .client
            .as_ref()
            .map(|client| ("client", client.span().start));
        let header = file.header.keys().find(is_secret);
        let header = header.map(|name| (name.get_ref().as_str(), name.span().start));
        client.or(header).map_or(Ok(()), |(what, offset)| {
            let problem = format!(
                "`{what}` would be shown to every registry that an image names; name the host, with `server` or [host.\"...\"]"
            );
            Err(self.wrong(offset, problem))
        })
    }

    /// Refuses in a host's table what belongs to the top of the file.
    fn has_no_hosts(&self, table: &HostTable) -> Result<(), Error> {
        let inner = table.host.keys().next().or(table.server.as_ref());
        inner.map_or(Ok(()), |inner| {
            let problem = "a host has no `server` or `host` of its own".to_owned();
            Err(self.wrong(inner.span().start, problem))
        })
    }

    fn client(&self, client: Spanned<Clients>) -> Result<Option<ClientIdentity>, Error> {
        let line = self.place_of(client.span().start);
        let files = client.into_inner().list().into_iter();
        let files: Vec<_> = files
            .map(|(path, key)| (self.beside(&path), key.map(|key| self.beside(&key))))
            .collect();
        identity(&line, &files)
    }

    fn headers(
        &self,
        fields: BTreeMap<Spanned<String>, Values>,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
        let mut headers = Vec::new();
        for (name, values) in fields {
            let wrong =
                |problem| self.wrong(name.span().start, format!("`{}` {problem}", name.get_ref()));
            let parsed = HeaderName::from_bytes(name.get_ref().as_bytes());
            let parsed = parsed.map_err(|_| wrong("is no name of a header field"))?;
            if RESERVED.contains(&parsed.as_str()) {
                return Err(wrong("is a header field that the request itself decides"));
            }
            for value in values.list() {
                let value = HeaderValue::from_str(&value);
                let mut value = value.map_err(|_| wrong("has a value that no header field has"))?;
                value.set_sensitive(true);
                headers.push((parsed.clone(), value));
            }
        }
        Ok(headers)
    }

    /// A path of the file, which may be relative to it.
    fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn bad_host(&self, url: &Spanned<String>, problem: &str) -> Error {
        // The text before an @ may be a password.
        let text = url.get_ref();
        let shown = text
            .rsplit_once('@')
            .map_or(text.as_str(), |(_, host)| host);
        self.wrong(url.span().start, format!("`{shown}` {problem}"))
    }

    /// What is wrong in this file, and in which line of it.
    fn wrong(&self, offset: usize, problem: String) -> Error {
        Error::invalid(self.place_of(offset), problem)
    }

    /// `FILE:LINE` of a byte.
    fn place_of(&self, offset: usize) -> String {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        format!("{}:{line}", self.path.display())
    }
}

/// Header fields that no file may set: they frame the message or name its target.
const RESERVED: [&str; 7] = [
    "connection",
    "content-length",
    "host",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// The certificate that this node presents, of those listed at `place`: one at most.
fn identity(
    place: &str,
    files: &[(PathBuf, Option<PathBuf>)],
) -> Result<Option<ClientIdentity>, Error> {
    match files {
        [] => Ok(None),
        [(path, key)] => certificates::identity(path, key.as_deref()).map(Some),
        more => Err(Error::invalid(
            place,
            format!(
                "it has {} client certificates, and one host can be shown one",
                more.len()
            ),
        )),
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

/// The root of the API, and what is between it and the repository, for a URL's path.
fn place(path: &str, is_override: bool) -> (String, String) {
    let path = path.trim_end_matches('/');
    let inner = path.strip_prefix("/v2");
    match inner {
        // As containerd does, a path that ends in /v2 already is taken as it is.
        _ if !is_override && path.ends_with("/v2") => (path.to_owned(), String::new()),
        _ if !is_override => (format!("{path}/v2"), String::new()),
        // The API's own root below which a repository of the host stands for all.
        Some(inner) if inner.starts_with('/') => {
            ("/v2".to_owned(), format!("{}/", inner.trim_matches('/')))
        }
        _ => (path.to_owned(), String::new()),
    }
}

/// A line of a parser's message without the value that it shows of the file: a header field can be a password.
fn without_values(line: &str) -> String {
    const VALUE: &str = "string \"";
    match (line.find(VALUE), line.rfind('"')) {
        (Some(first), Some(last)) => {
            let before = &line[..first + VALUE.len() - 1];
            format!("{before}...{}", &line[last + 1..])
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_message_shows_no_value_of_the_file() {
        let line = "invalid type: string \"Bearer \\\"s3cret\", expected a map";
        assert_eq!(
            super::without_values(line),
            "invalid type: string ..., expected a map"
        );
        assert_eq!(
            super::without_values("unknown field `x`"),
            "unknown field `x`"
        );
    }
}
