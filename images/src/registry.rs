//! The registry of one pull: its hosts (mirrors and the registry itself), tried in order.
//!
//! Called by: the pull. [`crate::mirrors`] lists the hosts, [`crate::endpoint`] sends the requests.
//! Invariants: hosts are tried in the order of the configuration, the registry itself last; one that fails is skipped
//! for the rest of the pull, except for the last; an error names every host that was tried. Bytes may come from any
//! host, because the pull verifies their digests.
//! Not here: where bytes are stored, what they mean.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::ImagesConfig;
use crate::endpoint::{
    BlobStream, Credentials, Document, Endpoint, NextPage, Resume, Rules, TransferLimits,
};
use crate::error::{Error, Kind as ErrorKind};
use crate::loopback::is_loopback;
use crate::manifest::Blob;
use crate::mirrors;
use crate::reference::{Digest, ImageRef, Target};

/// The capability that a request needs.
#[derive(Clone, Copy)]
enum Task {
    /// Resolve a tag.
    Resolve,
    /// Serve content by its digest.
    Pull,
}

/// The connections of one pull.
pub(crate) struct Registry {
    /// Never empty.
    endpoints: Vec<Endpoint>,
    /// The hosts that have answered a request.
    answered: Mutex<BTreeSet<String>>,
}

impl Registry {
    /// Prepares requests to the registry of `reference` and its mirrors, for `tenant`; nothing is sent yet.
    ///
    /// Errors: the configuration of its mirrors is invalid.
    pub(crate) fn new(
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        tenant: &str,
        config: &ImagesConfig,
    ) -> Result<Self, Error> {
        let is_plain =
            |host: &str| is_loopback(host) || config.plain_http.iter().any(|name| name == host);
        let dir = config.registry_config.as_deref();
        let upstreams = mirrors::upstreams(dir, reference.registry(), is_plain)?;
        let last = upstreams.len() - 1;
        let limits = TransferLimits {
            idle: config.pull_idle_timeout,
            min_rate: config.pull_min_bytes_per_s,
        };
        let proxies = Arc::new(config.proxies.clone());
        let tenant: Arc<str> = tenant.into();
        let endpoint = |(place, upstream)| {
            let rules = Rules {
                limits,
                proxies: &proxies,
                tenant: &tenant,
                has_next: place < last,
            };
            Endpoint::new(reference, upstream, credentials, rules)
        };
        let endpoints: Result<_, _> = upstreams.into_iter().enumerate().map(endpoint).collect();
        Ok(Self {
            endpoints: endpoints?,
            answered: Mutex::default(),
        })
    }

    /// The hosts that have delivered something, in the order of their names.
    pub(crate) fn answered(&self) -> String {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts: Vec<&str> = answered.iter().map(String::as_str).collect();
        hosts.join(", ")
    }

    /// Makes every host get a new token before its next request.
    pub(crate) async fn drop_tokens(&self) {
        for endpoint in &self.endpoints {
            endpoint.drop_token().await;
        }
    }

    /// Fetches a manifest or an index of at most `allowed` bytes. If `target` is a digest, the caller must verify it.
    pub(crate) async fn manifest(&self, target: &Target, allowed: u64) -> Result<Document, Error> {
        let task = match target {
            Target::Tag(_) => Task::Resolve,
            Target::Digest(_) => Task::Pull,
        };
        self.first(task, &format!("manifest {target}"), |endpoint| {
            endpoint.manifest(target, allowed)
        })
        .await
    }

    /// An index of manifests that refer to `digest`, of at most `allowed` bytes: the first page, or `page`; and the page that
    /// follows. A mirror that lists nothing may know of nothing: the next host is asked. Errors: `NotInRegistry` if no host has
    /// that API.
    pub(crate) async fn referrers(
        &self,
        digest: &Digest,
        allowed: u64,
        page: Option<&NextPage>,
    ) -> Result<(Document, Option<NextPage>), Error> {
        let what = format!("referrers of {digest}");
        let what = what.as_str();
        let Some(page) = page else {
            let last = self.endpoints.last().map(Endpoint::host);
            return self
                .first(Task::Pull, what, |endpoint| async move {
                    let (list, next) = endpoint.referrers(digest, allowed, None).await?;
                    match next.is_none() && lists_nothing(&list) && Some(endpoint.host()) != last {
                        true => Err(endpoint.has_not(what)),
                        false => Ok((list, next)),
                    }
                })
                .await;
        };
        let mut hosts = self.candidates(Task::Pull);
        let Some(endpoint) = hosts.find(|endpoint| page.is_of(endpoint)) else {
            return Err(self.no_capable_host(Task::Pull, what));
        };
        endpoint.authenticate().await?;
        endpoint.referrers(digest, allowed, Some(page)).await
    }

    /// True if one of the repositories in `proven`, which have delivered this blob before, lets these credentials read
    /// it, too. The response of a repository that has never delivered the blob does not count.
    pub(crate) async fn may_read(&self, blob: &Blob, proven: &BTreeSet<String>) -> bool {
        for endpoint in self.candidates(Task::Pull) {
            if !proven.contains(&endpoint.source()) {
                continue;
            }
            let answer = match endpoint.authenticate().await {
                Ok(()) => endpoint.may_read(blob).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(host = endpoint.host(), digest = %blob.digest, %error, "access is not proven");
                }
            }
        }
        false
    }

    /// Opens the stream of one blob. One attempt per host: the caller repeats, because it holds the bytes so far.
    pub(crate) async fn blob(
        &self,
        blob: &Blob,
        resume: Option<Resume<'_>>,
    ) -> Result<BlobStream, Error> {
        let what = format!("blob {}", blob.digest);
        self.first(Task::Pull, &what, |endpoint| endpoint.blob(blob, resume))
            .await
    }

    /// The first successful response. Errors: the only host's error, or those of all hosts.
    async fn first<'a, T, F: Future<Output = Result<T, Error>>>(
        &'a self,
        task: Task,
        what: &str,
        request: impl Fn(&'a Endpoint) -> F,
    ) -> Result<T, Error> {
        let mut tried = Vec::new();
        for endpoint in self.candidates(task) {
            let answer = match endpoint.authenticate().await {
                Ok(()) => request(endpoint).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => {
                    let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                    if !answered.contains(endpoint.host()) {
                        answered.insert(endpoint.host().to_owned());
                    }
                    return Ok(answer);
                }
                Err(error) => {
                    tracing::debug!(host = endpoint.host(), what, %error, "the host does not deliver");
                    if error.kind() == ErrorKind::RegistryUnavailable {
                        endpoint.give_up();
                    }
                    tried.push(error);
                }
            }
        }
        if tried.len() < 2 {
            return Err(tried
                .pop()
                .unwrap_or_else(|| self.no_capable_host(task, what)));
        }
        Err(Error::Hosts { tried })
    }

    /// The hosts to try: those that have not failed, and always the last.
    fn candidates(&self, task: Task) -> impl Iterator<Item = &Endpoint> {
        let last = self.endpoints.len() - 1;
        let is_candidate = move |(place, endpoint): &(usize, &Endpoint)| match task {
            _ if *place < last && endpoint.is_given_up() => false,
            Task::Resolve => endpoint.may_resolve(),
            Task::Pull => endpoint.may_pull(),
        };
        let all = self.endpoints.iter().enumerate();
        all.filter(is_candidate).map(|(_, endpoint)| endpoint)
    }

    fn no_capable_host(&self, task: Task, what: &str) -> Error {
        let capability = match task {
            Task::Resolve => "resolve",
            Task::Pull => "pull",
        };
        Error::Registry {
            registry: self.endpoints[self.endpoints.len() - 1].host().to_owned(),
            what: what.to_owned(),
            problem: format!("no host that still answers has the capability {capability:?}"),
        }
    }
}

/// Whether it is a list of referrers, and an empty one.
fn lists_nothing(list: &Document) -> bool {
    #[derive(Deserialize)]
    struct Referrers {
        manifests: Vec<IgnoredAny>,
    }
    let referrers = serde_json::from_slice::<Referrers>(&list.bytes);
    referrers.is_ok_and(|list| list.manifests.is_empty())
}
