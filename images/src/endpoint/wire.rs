//! HTTP requests: connections, redirects, bounded bodies.
//!
//! Called by: [`super::Endpoint`] and [`super::token`], for all their requests.
//! Invariants: [`super::address_policy`] checks every redirect before it is followed, at most [`MAX_REDIRECTS`] are;
//! credentials go only to the origin for which they are meant and are dropped at the first redirect to another; http
//! is used only if the registry is configured for http; what a proxy resolves cannot evade the policy; header fields and the
//! client certificate of the operator go to the host itself alone.
//! Not here: which requests are sent, what a response means, connections ([`super::client`]), bodies ([`super::body`]).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, Url};

use super::address_policy::AddressPolicy;
use super::client::{Connections, client, connect_timeout};
use super::failure::{Failure, setup_failed};
use crate::error::Error;
use crate::loopback::is_loopback;
use crate::mirrors::Upstream;
use crate::proxy::Proxies;

/// Redirects followed by one request.
const MAX_REDIRECTS: usize = 5;
/// The authorization of a request.
#[derive(Clone, Default)]
pub(super) enum Auth {
    #[default]
    None,
    Basic(String, String),
    Bearer(String),
    /// An identity token (an OAuth 2 refresh token): it goes to the realm, which gives a token for it.
    Identity(String),
}

/// What some requests have besides.
pub(super) enum Extra {
    None,
    /// Only the bytes from here on.
    From(u64),
    /// A form with a secret: it is sent to its URL, and a redirect is refused.
    Form(String),
}

/// One request.
pub(super) struct Request<'a> {
    pub method: Method,
    pub url: Url,
    pub auth: &'a Auth,
    /// Accepted media types; empty for all.
    pub accept: &'a [&'a str],
    pub extra: Extra,
    /// The requested object, for messages.
    pub what: &'a str,
}

/// A response whose body was not read yet.
pub(super) struct Answer {
    pub response: Response,
    /// It came from another origin, after a redirect.
    pub is_elsewhere: bool,
}

/// The HTTP clients for one host and for the hosts to which it redirects.
pub(super) struct Wire {
    upstream: Upstream,
    /// The host's name, for messages, with its proxy.
    name: String,
    idle: Duration,
    proxies: Arc<Proxies>,
    /// For whom it works.
    tenant: Arc<str>,
    own: Client,
    own_policy: AddressPolicy,
    /// For all other origins; created when first needed.
    other: OnceLock<Client>,
}

impl Wire {
    /// Nothing is sent yet. `name` is the host's, for messages; `tenant` is for whom. Errors: the certificates of the configuration cannot be used.
    pub(super) fn new(
        upstream: &Upstream,
        name: &str,
        idle: Duration,
        proxies: Arc<Proxies>,
        tenant: &Arc<str>,
    ) -> Result<Self, Error> {
        let own_policy = AddressPolicy {
            loopback: true,
            link_local: upstream.is_configured,
        };
        let connections = Connections {
            upstream,
            policy: own_policy,
            is_own: true,
            proxies: &proxies,
            tenant,
            idle,
        };
        let own = client(connections).map_err(|error| setup_failed(name, &error))?;
        let mut wire = Self {
            upstream: upstream.clone(),
            name: name.to_owned(),
            idle,
            proxies,
            tenant: tenant.clone(),
            own,
            own_policy,
            other: OnceLock::new(),
        };
        if let Some(proxy) = wire.proxies.of(&wire.url("/", name)?) {
            wire.name = format!("{name} (through the proxy {proxy})");
        }
        Ok(wire)
    }

    /// The host's name, for messages, with its proxy.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A URL of the host's API; `path` begins with a slash.
    pub(super) fn url(&self, path: &str, what: &str) -> Result<Url, Error> {
        let up = &self.upstream;
        let scheme = if up.plain_http { "http" } else { "https" };
        let text = format!("{scheme}://{}{}{path}", up.authority, up.api);
        Url::parse(&text).map_err(|error| Error::invalid(what, format!("URL {text:?}: {error}")))
    }

    /// Sends a request and follows redirects.
    ///
    /// Errors: [`Error::Unreachable`], [`Error::Registry`], [`Error::Invalid`] for a forbidden redirect.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Answer, Error> {
        let first = request.url.origin();
        let (mut url, mut auth) = (request.url.clone(), request.auth);
        for _ in 0..=MAX_REDIRECTS {
            let is_elsewhere = url.origin() != first;
            if is_elsewhere {
                auth = &Auth::None;
            }
            let response = self.hop(&request, &url, auth).await?;
            let Some(next) = self.next(&response, &url, request.what)? else {
                return Ok(Answer {
                    response,
                    is_elsewhere,
                });
            };
            if let Extra::Form(_) = request.extra {
                let problem = "it redirects a request with an identity token";
                return Err(self.refused(request.what, problem.to_owned()));
            }
            url = next;
        }
        Err(self.refused(
            request.what,
            format!("it redirects more than {MAX_REDIRECTS} times"),
        ))
    }

    async fn hop(&self, request: &Request<'_>, url: &Url, auth: &Auth) -> Result<Response, Error> {
        let what = request.what;
        let is_own = self.is_own(url);
        let (client, policy) = self.client(is_own)?;
        self.check_scheme(url, what)?;
        policy
            .check(url)
            .map_err(|error| self.refused(what, error.to_string()))?;
        if !is_own {
            self.check_proxy(url, what)?;
        }
        let mut call = client.request(request.method.clone(), url.clone());
        if is_own {
            call = self.configured(call, auth);
        }
        if !request.accept.is_empty() {
            call = call.header(ACCEPT, request.accept.join(", "));
        }
        call = match auth {
            Auth::None | Auth::Identity(_) => call,
            Auth::Basic(user, password) => call.basic_auth(user, Some(password)),
            Auth::Bearer(token) => call.bearer_auth(token),
        };
        call = match &request.extra {
            Extra::None => call,
            Extra::From(first) => call.header(RANGE, format!("bytes={first}-")),
            Extra::Form(form) => call
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone()),
        };
        let failed = |error| self.failure(&error, url, is_own, what);
        call.send().await.map_err(failed)
    }

    /// Adds the header fields that the operator has set for this host, but for those that the request itself has.
    fn configured(&self, mut call: RequestBuilder, auth: &Auth) -> RequestBuilder {
        let is_authorized = matches!(auth, Auth::Basic(..) | Auth::Bearer(_));
        for (name, value) in &self.upstream.headers {
            let is_of_request = [ACCEPT, CONTENT_TYPE, RANGE].contains(name)
                || is_authorized && *name == AUTHORIZATION;
            if !is_of_request {
                call = call.header(name, value);
            }
        }
        call
    }

    /// Checks what a proxy would hide from the [`AddressPolicy`]: it resolves the names of other hosts itself. By https only
    /// the host that a certificate shows to have the name gets a request, wherever the name leads; by http whoever is
    /// there does. The proxy itself is no place to lead to either: its name may have any address.
    fn check_proxy(&self, url: &Url, what: &str) -> Result<(), Error> {
        let host = url.host_str().unwrap_or_default();
        if self.proxies.is_proxy(host) {
            return Err(self.refused(what, format!("it leads to {host}, which is the proxy")));
        }
        match self.proxies.of(url) {
            Some(proxy) if url.scheme() != "https" => Err(self.refused(
                what,
                format!(
                    "it leads to {host} by plain http, which is not requested through the proxy {proxy}; \
                     images.no_proxy lists what this node can reach itself"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The target of a redirect; `None` if the response is none.
    fn next(&self, response: &Response, at: &Url, what: &str) -> Result<Option<Url>, Error> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).map(|value| value.to_str());
        match location {
            Some(Ok(location)) => {
                let next = at.join(location);
                next.map(Some).map_err(|_| {
                    self.refused(what, "it redirects to something that is no URL".to_owned())
                })
            }
            _ => Err(self.refused(what, "it redirects to nowhere".to_owned())),
        }
    }

    fn check_scheme(&self, url: &Url, what: &str) -> Result<(), Error> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.upstream.plain_http => Ok(()),
            other => Err(self.refused(
                what,
                format!("it leads to a URL with scheme {other:?}, which is not accepted"),
            )),
        }
    }

    /// Whether the URL has scheme, host and port of the registry or mirror.
    fn is_own(&self, url: &Url) -> bool {
        self.url("/", "the registry")
            .is_ok_and(|own| own.origin() == url.origin())
    }

    fn client(&self, is_own: bool) -> Result<(&Client, AddressPolicy), Error> {
        if is_own {
            return Ok((&self.own, self.own_policy));
        }
        let policy = AddressPolicy {
            loopback: is_loopback(&self.upstream.authority),
            link_local: false,
        };
        if let Some(client) = self.other.get() {
            return Ok((client, policy));
        }
        let made = client(Connections {
            upstream: &self.upstream,
            policy,
            is_own: false,
            proxies: &self.proxies,
            tenant: &self.tenant,
            idle: self.idle,
        });
        let made = made.map_err(|error| setup_failed(&self.name, &error))?;
        Ok((self.other.get_or_init(|| made), policy))
    }

    /// The error for a refused redirect.
    pub(super) fn refused(&self, what: &str, problem: String) -> Error {
        Error::invalid(format!("{what} at {}", self.name), problem)
    }

    /// The error for a request without a response. It has no details about another host.
    fn failure(&self, error: &reqwest::Error, url: &Url, is_own: bool, what: &str) -> Error {
        let failure = Failure::of(error);
        if let Failure::Forbidden(problem) = failure {
            return self.refused(what, problem);
        }
        if is_own {
            let waited = connect_timeout(&self.upstream, self.idle);
            return failure.into_error(&self.name, what, waited);
        }
        let host = url.host_str().unwrap_or("another host");
        let by = self.proxies.of(url);
        let by = by.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"));
        Error::Registry {
            registry: self.name.clone(),
            what: what.to_owned(),
            problem: format!("{host}, where it leads, does not answer{by}"),
        }
    }
}
