//! HTTP requests: connections, redirects, bounded bodies.
//!
//! Called by: [`super::Endpoint`] and [`super::token`], for all their requests.
//! Invariants: [`super::address_policy`] checks every redirect before it is followed, at most [`MAX_REDIRECTS`] are;
//! credentials go only to the origin for which they are meant and are dropped at the first redirect to another; http
//! is used only if the registry is configured for http; no body is read beyond its limit. Proxies of the environment
//! are not used.
//! Not here: which requests are sent, what a response means.

use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, Response, Url};

use super::address_policy::{AddressPolicy, ForbiddenAddress, Resolver};
use super::error_response::deepest;
use super::{CONNECT_TIMEOUT, is_loopback};
use crate::error::Error;
use crate::mirrors::Upstream;

/// Redirects followed by one request.
const MAX_REDIRECTS: usize = 5;
/// Header fields of one answer; their bytes are bounded by the connection's own buffer (some 400 KiB).
const MAX_HEADERS: usize = 100;

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
    /// The host's name, for messages.
    name: String,
    idle: Duration,
    own: Client,
    own_policy: AddressPolicy,
    /// For all other origins; created when first needed.
    other: OnceLock<Client>,
}

impl Wire {
    /// Nothing is sent yet. Errors: the certificates of the configuration cannot be used.
    pub(super) fn new(upstream: &Upstream, name: &str, idle: Duration) -> Result<Self, Error> {
        let own_policy = AddressPolicy {
            loopback: true,
            link_local: upstream.is_configured,
        };
        let own = client(upstream, own_policy, upstream.skip_verify, idle);
        let own = own.map_err(|error| setup_failed(name, &error))?;
        Ok(Self {
            upstream: upstream.clone(),
            name: name.to_owned(),
            idle,
            own,
            own_policy,
            other: OnceLock::new(),
        })
    }

    /// A URL of the host itself; `path` begins with a slash.
    pub(super) fn url(&self, path: &str, what: &str) -> Result<Url, Error> {
        let up = &self.upstream;
        let scheme = if up.plain_http { "http" } else { "https" };
        let text = format!("{scheme}://{}{}{path}", up.authority, up.prefix);
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
        let mut call = client.request(request.method.clone(), url.clone());
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
        call.send()
            .await
            .map_err(|error| self.failure(&error, url, is_own, what))
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
        let made = client(&self.upstream, policy, false, self.idle);
        let made = made.map_err(|error| setup_failed(&self.name, &error))?;
        Ok((self.other.get_or_init(|| made), policy))
    }

    /// The error for a refused redirect.
    pub(super) fn refused(&self, what: &str, problem: String) -> Error {
        Error::invalid(format!("{what} at {}", self.name), problem)
    }

    /// The error for a request without a response. It has no details about another host.
    fn failure(&self, error: &reqwest::Error, url: &Url, is_own: bool, what: &str) -> Error {
        if let Some(forbidden) = forbidden(error) {
            return self.refused(what, forbidden.to_string());
        }
        let registry = self.name.clone();
        if !is_own {
            let host = url.host_str().unwrap_or("another host");
            return Error::Registry {
                registry,
                what: what.to_owned(),
                problem: format!("{host}, where it leads, does not answer"),
            };
        }
        if error.is_connect() {
            return Error::Unreachable {
                registry,
                problem: deepest(error),
            };
        }
        Error::Registry {
            registry,
            what: what.to_owned(),
            problem: deepest(error),
        }
    }
}

/// Reads a whole body. Errors: [`Error::Limit`] as soon as it exceeds its limit, [`Error::Registry`].
pub(super) async fn read_bounded(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    bound.check(answer)?;
    match read_until(wire, answer, bound, &mut body, bound.allowed).await? {
        true => Ok(body.freeze()),
        false => Err(bound.exceeded()),
    }
}

/// The limit of a body.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    /// The object, for messages.
    pub what: &'a str,
    /// The limit's name.
    pub limit: &'static str,
    /// Bytes.
    pub allowed: u64,
}

impl Bound<'_> {
    pub(super) fn exceeded(self) -> Error {
        Error::Limit {
            what: self.what.to_owned(),
            limit: self.limit,
            allowed: self.allowed,
        }
    }

    /// Errors: the Content-Length exceeds the limit.
    pub(super) fn check(self, answer: &Answer) -> Result<(), Error> {
        match answer.response.content_length() {
            Some(promised) if promised > self.allowed => Err(self.exceeded()),
            _ => Ok(()),
        }
    }
}

/// Reads until the end of the body (true), or until there are more than `until` bytes (false).
pub(super) async fn read_until(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
    body: &mut BytesMut,
    until: u64,
) -> Result<bool, Error> {
    while let Some(chunk) = answer
        .response
        .chunk()
        .await
        .map_err(|error| Error::Registry {
            registry: wire.name.clone(),
            what: bound.what.to_owned(),
            problem: format!("it broke off: {}", deepest(&error)),
        })?
    {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > until {
            return Ok(false);
        }
    }
    Ok(true)
}

fn forbidden(error: &reqwest::Error) -> Option<&ForbiddenAddress> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<ForbiddenAddress>() {
            return Some(found);
        }
        cause = inner.source();
    }
    None
}

fn client(
    upstream: &Upstream,
    policy: AddressPolicy,
    skip_verify: bool,
    idle: Duration,
) -> Result<Client, reqwest::Error> {
    let authorities = upstream
        .authorities
        .iter()
        .map(|pem| Certificate::from_pem(pem));
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .dns_resolver(Resolver(policy))
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .danger_accept_invalid_certs(skip_verify)
        .tls_certs_merge(authorities.collect::<Result<Vec<_>, _>>()?)
        .connect_timeout(CONNECT_TIMEOUT.min(idle))
        .read_timeout(idle)
        .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
        .build()
}

fn setup_failed(name: &str, error: &reqwest::Error) -> Error {
    Error::Registry {
        registry: name.to_owned(),
        what: "anything".to_owned(),
        problem: format!("the http client cannot be set up: {}", deepest(error)),
    }
}
