//! One host, one repository, one set of credentials: tokens, manifests and blob streams.
//!
//! Called by: [`crate::registry`], for the registry itself or a mirror; no other module uses the network.
//! Invariants: credentials live only inside the connections of one pull, so two pulls never share a token;
//! `urls` of foreign layers are never followed; every wait for the host ends after the idle timeout, and a blob has
//! a minimum rate; documents have a maximum size; a request without an answer is repeated a bounded number of times.
//! Not here: the order of hosts, where bytes are stored, what they mean; which addresses are allowed
//! ([`address_policy`]).

mod address_policy;
mod body;
mod client;
mod credentials;
mod document;
mod error_response;
mod failure;
mod lookup;
mod names;
mod referrers;
mod retry_after;
mod stream;
mod throughput;
mod token;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use tokio::sync::Mutex;
use tokio::time::timeout;

pub use credentials::Credentials;
pub(crate) use document::{Document, large_document};
pub(crate) use referrers::NextPage;
pub(crate) use stream::{BlobStream, Resume};
pub(crate) use throughput::TransferLimits;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use token::fuzz::challenge;

use body::{Bound, read_bounded};
use client::install_tls;
use error_response::{RequestInfo, error_for_status};
use names::{is_mirror, name};
use throughput::Throughput;
use wire::{Answer, Auth, Extra, Request, Wire};

use crate::error::Error;
use crate::manifest::{ACCEPTED, Blob};
use crate::mirrors::Upstream;
use crate::proxy::Proxies;
use crate::reference::{ImageRef, Target};

/// Attempts of one request.
pub(crate) const ATTEMPTS: u32 = 3;
/// The pause before the second attempt; it doubles.
pub(crate) const BACKOFF: Duration = Duration::from_millis(200);
/// Most bytes of an error response that are read, for its error code.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// A request in the repository.
struct Call<'a> {
    method: Method,
    /// Below the repository.
    path: &'a str,
    query: Option<&'a str>,
    accept: &'a [&'a str],
    extra: Extra,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a str, accept: &'a [&'a str]) -> Self {
        Self {
            method,
            path,
            query: None,
            accept,
            extra: Extra::None,
        }
    }
}

/// What holds for the requests of one pull to one host, besides what is configured for the host.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub limits: TransferLimits,
    /// The proxies for hosts that have none of their own.
    pub proxies: &'a Arc<Proxies>,
    /// The namespace that needs the image; empty if unknown.
    pub tenant: &'a Arc<str>,
    /// Another host follows, so that requests to this one are not repeated.
    pub has_next: bool,
}

/// The connection of one pull to one host.
pub(crate) struct Endpoint {
    wire: Wire,
    reference: ImageRef,
    upstream: Upstream,
    /// The credentials of the pull, if this host may see them.
    given: Auth,
    limits: TransferLimits,
    attempts: u32,
    /// The authorization that the host requires; `None` until it was requested.
    auth: Mutex<Option<Auth>>,
    is_given_up: Arc<AtomicBool>,
}

impl Endpoint {
    /// Prepares requests to one host for `reference`; nothing is sent yet.
    ///
    /// Errors: its certificates cannot be used.
    pub(crate) fn new(
        reference: &ImageRef,
        upstream: Upstream,
        credentials: Option<&Credentials>,
        rules: Rules<'_>,
    ) -> Result<Self, Error> {
        install_tls();
        let Rules {
            limits,
            proxies,
            tenant,
            has_next,
        } = rules;
        let name = name(reference, &upstream);
        let proxies = match &upstream.proxy {
            Some(proxy) => Arc::new(Proxies::only(proxy.clone())),
            None => Arc::clone(proxies),
        };
        let given = match credentials.filter(|_| upstream.gets_credentials) {
            None => Auth::None,
            Some(Credentials::Basic { username, password }) => {
                Auth::Basic(username.clone(), password.clone())
            }
            Some(Credentials::Bearer(token)) => Auth::Bearer(token.clone()),
            Some(Credentials::Identity(token)) => Auth::Identity(token.clone()),
        };
        Ok(Self {
            wire: Wire::new(&upstream, &name, limits.idle, proxies, tenant)?,
            reference: reference.clone(),
            upstream,
            given,
            limits,
            attempts: if has_next { 1 } else { ATTEMPTS },
            auth: Mutex::default(),
            is_given_up: Arc::default(),
        })
    }

    /// The host, for messages: the registry's name, or the URL of a mirror; with the proxy if it has one.
    pub(crate) fn host(&self) -> &str {
        self.wire.name()
    }

    /// Whether it may resolve tags.
    pub(crate) fn may_resolve(&self) -> bool {
        self.upstream.may_resolve
    }

    /// Whether it may serve content by digest.
    pub(crate) fn may_pull(&self) -> bool {
        self.upstream.may_pull
    }

    /// Whether it has failed in this pull.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Skips it for the rest of this pull.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// The repository at this host, as in [`crate::sources`].
    pub(crate) fn source(&self) -> String {
        let up = &self.upstream;
        let scheme = if up.plain_http { "http" } else { "https" };
        format!(
            "{scheme}://{}{}/{}",
            up.authority,
            up.prefix(),
            self.repository()
        )
    }

    /// The repository's name at this host.
    fn repository(&self) -> String {
        format!(
            "{}{}",
            self.upstream.repository_prefix,
            self.reference.repository()
        )
    }

    /// Gets a token, unless it has one. Errors: [`Error::Unauthorized`], [`Error::Registry`], [`Error::Unreachable`].
    pub(crate) async fn authenticate(&self) -> Result<(), Error> {
        let mut auth = self.auth.lock().await;
        if auth.is_none() {
            let what = format!("a token for {}", self.reference.repository());
            let repository = self.repository();
            let got = self
                .retry(&what, || {
                    let request_info = self.request_info(&what);
                    let repository = &repository;
                    self.within(&what, async move {
                        token::fetch(&self.wire, repository, &self.given, &request_info).await
                    })
                })
                .await?;
            *auth = Some(got);
        }
        Ok(())
    }

    /// Makes the next [`Endpoint::authenticate`] request a new token.
    pub(crate) async fn drop_token(&self) {
        *self.auth.lock().await = None;
    }

    /// Fetches a manifest or an index of at most `allowed` bytes. If `target` is a digest, the caller must verify it.
    pub(crate) async fn manifest(&self, target: &Target, allowed: u64) -> Result<Document, Error> {
        let what = format!("manifest {}:{target}", self.reference.repository());
        let path = format!("manifests/{target}");
        self.retry(&what, || {
            self.within(&what, async {
                let mut answer = self
                    .get(Call::new(Method::GET, &path, &ACCEPTED), &what)
                    .await?;
                let bound = Bound {
                    what: &what,
                    limit: "max_manifest_bytes",
                    allowed,
                };
                document::read(&self.wire, &mut answer, bound).await
            })
        })
        .await
    }

    /// True if the registry lets these credentials read this blob.
    pub(crate) async fn may_read(&self, blob: &Blob) -> Result<bool, Error> {
        let what = format!("blob {}", blob.digest);
        let path = format!("blobs/{}", blob.digest);
        self.retry(&what, || {
            self.within(&what, async {
                match self.get(Call::new(Method::HEAD, &path, &[]), &what).await {
                    Ok(_) => Ok(true),
                    Err(Error::NotInRegistry { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            })
        })
        .await
    }

    /// Opens the stream of one blob. One attempt: the caller repeats, because it holds the bytes so far. With `resume`,
    /// the stream begins after these bytes if this host has sent them and can send a part; else at the beginning.
    pub(crate) async fn blob(
        &self,
        blob: &Blob,
        resume: Option<Resume<'_>>,
    ) -> Result<BlobStream, Error> {
        let what = format!("blob {}", blob.digest);
        if blob.size == 0 {
            // An empty blob needs no request.
            return Ok(self.stream(None, 0, what));
        }
        let resume = resume.filter(|resume| resume.source == self.source());
        let resume = resume.filter(|resume| resume.first > 0 && resume.first < blob.size);
        let path = format!("blobs/{}", blob.digest);
        let call = Call {
            extra: resume.map_or(Extra::None, |resume| Extra::From(resume.first)),
            ..Call::new(Method::GET, &path, &[])
        };
        let answer = self.within(&what, self.get(call, &what)).await?;
        let first = stream::first_byte(&answer.response);
        if first.is_none_or(|first| first != 0 && resume.is_none_or(|resume| resume.first != first))
        {
            return Err(Error::Registry {
                registry: self.host().to_owned(),
                what,
                problem: "it sends another part than was requested".to_owned(),
            });
        }
        Ok(self.stream(Some(answer), first.unwrap_or_default(), what))
    }

    fn stream(&self, answer: Option<Answer>, first: u64, what: String) -> BlobStream {
        BlobStream {
            first,
            is_elsewhere: answer.as_ref().is_some_and(|answer| answer.is_elsewhere),
            response: answer.map(|answer| answer.response),
            registry: self.host().to_owned(),
            what,
            limits: self.limits,
            throughput: Throughput::new(self.limits),
            is_given_up: Arc::clone(&self.is_given_up),
            has_next: self.attempts == 1,
            source: self.source(),
        }
    }

    /// Sends a request in the repository. Errors: the host's error response.
    async fn get(&self, call: Call<'_>, what: &str) -> Result<Answer, Error> {
        let auth = self.auth.lock().await.clone().unwrap_or_default();
        let path = format!("/{}/{}", self.repository(), call.path);
        let mut url = self.wire.url(&path, what)?;
        url.set_query(call.query);
        let is_named = url.query_pairs().any(|(key, _)| key == "ns");
        if !is_named && is_mirror(&self.reference, &self.upstream) {
            // A mirror needs the name of the registry.
            url.query_pairs_mut()
                .append_pair("ns", self.reference.registry());
        }
        let answer = self
            .wire
            .send(Request {
                method: call.method,
                url,
                auth: &auth,
                accept: call.accept,
                extra: call.extra,
                what,
            })
            .await?;
        if answer.response.status().is_success() {
            return Ok(answer);
        }
        Err(self.refused(answer, what).await)
    }

    /// The error for an error response.
    async fn refused(&self, mut answer: Answer, what: &str) -> Error {
        let bound = Bound {
            what,
            limit: "of an error's text",
            allowed: MAX_ERROR_BYTES,
        };
        // What another host says is not shown: a registry could have the node ask hosts that only the node reaches.
        let body = match answer.is_elsewhere {
            true => Ok(Default::default()),
            false => read_bounded(&self.wire, &mut answer, bound).await,
        };
        let body = body.unwrap_or_default();
        error_for_status(&self.request_info(what), &answer.response, &body)
    }

    fn request_info<'a>(&'a self, what: &'a str) -> RequestInfo<'a> {
        RequestInfo {
            registry: self.host(),
            what,
            is_anonymous: matches!(self.given, Auth::None),
        }
    }

    /// Repeats `request` while the host does not answer or asks for a pause; other error responses are final.
    async fn retry<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &str,
        request: impl Fn() -> F,
    ) -> Result<T, Error> {
        let mut pause = BACKOFF;
        let mut attempt = 1;
        loop {
            let error = match request().await {
                Err(error) if error.may_pass() && attempt < self.attempts => error,
                answer => return answer,
            };
            tracing::debug!(registry = self.host(), what, attempt, %error, "repeating a request to the registry");
            tokio::time::sleep(error.pause(pause)).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// Applies the idle timeout to a request.
    async fn within<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        timeout(self.limits.idle, request)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Stalled {
                    registry: self.host().to_owned(),
                    what: what.to_owned(),
                    idle: self.limits.idle,
                })
            })
    }
}
