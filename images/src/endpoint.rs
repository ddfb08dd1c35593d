//! One host, one repository, one set of credentials: tokens, manifests and blob streams.
//!
//! Place in the flow: [`crate::registry`] asks here, the registry itself or a mirror; nothing else talks to the network.
//! Invariants: credentials live only inside the client of one pull, so two pulls never share a token;
//! `urls` of foreign layers are never followed; every wait for the host ends after the idle timeout;
//! an attempt that failed for want of an answer is repeated a bounded number of times.
//! Not here: which host is asked first, where bytes land, what they mean.

mod refusal;
mod stream;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::sync::Mutex;
use tokio::time::timeout;

pub(crate) use stream::BlobStream;

use refusal::deepest;

use crate::error::Error;
use crate::manifest::{ACCEPTED, Blob};
use crate::mirrors::Upstream;
use crate::reference::{ImageRef, Target};

/// How often one request is made before its failure counts.
pub(crate) const ATTEMPTS: u32 = 3;
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the second attempt; it doubles.
const BACKOFF: Duration = Duration::from_millis(200);

/// What a client shows a registry to be let in. `Debug` and `Display` show no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A user name and a password, for basic authentication or a token request.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that the registry takes as it is.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(redacted)",
            Self::Bearer(_) => "Bearer(redacted)",
        })
    }
}

/// The connection of one pull to one host.
pub(crate) struct Endpoint {
    client: Client,
    reference: ImageRef,
    upstream: Upstream,
    /// For messages: the registry's name, or the URL of a mirror.
    name: String,
    auth: RegistryAuth,
    idle: Duration,
    /// How often one request is made before its failure counts.
    attempts: u32,
    /// True once the host has let us in.
    is_in: Mutex<bool>,
    /// True once it has failed and somebody else is better asked.
    is_given_up: Arc<AtomicBool>,
}

impl Endpoint {
    /// Prepares to talk to a host; nothing is sent yet. `has_next` says that another is asked if this one fails.
    pub(crate) fn new(
        reference: &ImageRef,
        upstream: Upstream,
        credentials: Option<&Credentials>,
        idle: Duration,
        has_next: bool,
    ) -> Result<Self, Error> {
        install_tls();
        let name = name(reference, &upstream);
        let auth = match credentials.filter(|_| upstream.gets_credentials) {
            None => RegistryAuth::Anonymous,
            Some(Credentials::Basic { username, password }) => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            Some(Credentials::Bearer(token)) => RegistryAuth::Bearer(token.clone()),
        };
        let config = client_config(&upstream, idle);
        let client = Client::try_from(config).map_err(|source| Error::Registry {
            registry: name.clone(),
            what: "anything".to_owned(),
            problem: format!("the http client cannot be set up: {}", deepest(&source)),
        })?;
        Ok(Self {
            client,
            reference: reference.clone(),
            upstream,
            name,
            auth,
            idle,
            attempts: if has_next { 1 } else { ATTEMPTS },
            is_in: Mutex::new(false),
            is_given_up: Arc::default(),
        })
    }

    /// The host, for messages.
    pub(crate) fn host(&self) -> &str {
        &self.name
    }

    /// Whether tags may be asked for here.
    pub(crate) fn may_resolve(&self) -> bool {
        self.upstream.may_resolve
    }

    /// Whether content may be asked for here by its digest.
    pub(crate) fn may_pull(&self) -> bool {
        self.upstream.may_pull
    }

    /// Whether it has failed in this pull.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Leaves it out for the rest of this pull.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Gets in, unless it is in. Errors: [`Error::Unauthorized`], [`Error::Registry`].
    pub(crate) async fn enter(&self) -> Result<(), Error> {
        let mut is_in = self.is_in.lock().await;
        if !*is_in {
            let what = format!("a token for {}", self.reference.repository());
            self.retry(&what, || self.ask_token(&what)).await?;
            *is_in = true;
        }
        Ok(())
    }

    /// Makes the next [`Endpoint::enter`] ask for a new token.
    pub(crate) async fn leave(&self) {
        *self.is_in.lock().await = false;
    }

    async fn ask_token(&self, what: &str) -> Result<(), Error> {
        let reference = self.wire(self.reference.target());
        let ask = self
            .client
            .auth(&reference, &self.auth, RegistryOperation::Pull);
        self.answer(what, ask).await.map(|_| ())
    }

    /// Fetches a manifest or an index. The bytes have the digest, if `target` is one; the size is the caller's
    /// to check.
    pub(crate) async fn manifest(&self, target: &Target) -> Result<Bytes, Error> {
        let what = format!("manifest {}:{target}", self.reference.repository());
        let reference = self.wire(target);
        self.retry(&what, || async {
            let ask = self
                .client
                .pull_manifest_raw(&reference, &self.auth, &ACCEPTED);
            self.answer(&what, ask).await.map(|(bytes, _)| bytes)
        })
        .await
    }

    /// True if the registry would give this blob to these credentials.
    pub(crate) async fn may_read(&self, blob: &Blob) -> Result<bool, Error> {
        let what = format!("blob {}", blob.digest);
        let reference = self.wire(self.reference.target());
        self.retry(&what, || {
            self.answer(
                &what,
                self.client.blob_exists(&reference, blob.digest.as_str()),
            )
        })
        .await
    }

    /// Opens the stream of one blob. One attempt: the caller repeats, because it owns the bytes so far.
    pub(crate) async fn blob(&self, blob: &Blob) -> Result<BlobStream, Error> {
        let what = format!("blob {}", blob.digest);
        if blob.size == 0 {
            // There is no first byte to ask for: registries answer such a range with an error.
            let stream = futures_util::stream::empty().boxed();
            return Ok(self.stream(stream, what));
        }
        let reference = self.wire(self.reference.target());
        let descriptor = OciDescriptor {
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            media_type: blob.media_type.clone(),
            ..OciDescriptor::default()
        };
        // The partial form from byte 0 leaves the check of the digest to us, which also names both digests.
        let ask = self
            .client
            .pull_blob_stream_partial(&reference, &descriptor, 0, None);
        let stream = match self.answer(&what, ask).await? {
            oci_client::client::BlobResponse::Full(sized)
            | oci_client::client::BlobResponse::Partial(sized) => sized.stream,
        };
        Ok(self.stream(stream, what))
    }

    fn stream(
        &self,
        stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
        what: String,
    ) -> BlobStream {
        BlobStream {
            stream,
            registry: self.host().to_owned(),
            what,
            idle: self.idle,
            is_given_up: Arc::clone(&self.is_given_up),
            has_next: self.attempts == 1,
        }
    }

    /// Repeats `ask` while the registry does not answer; a refusal is final.
    async fn retry<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &str,
        ask: impl Fn() -> F,
    ) -> Result<T, Error> {
        let mut pause = BACKOFF;
        let mut attempt = 1;
        loop {
            match ask().await {
                Err(error @ Error::Registry { .. }) if attempt < self.attempts => {
                    tracing::debug!(registry = self.host(), what, attempt, %error, "asking the registry again");
                }
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// Bounds the wait and turns the client's error into ours.
    async fn answer<T>(
        &self,
        what: &str,
        ask: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, Error> {
        match timeout(self.idle, ask).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refusal(what, error)),
            Err(_) => Err(Error::Stalled {
                registry: self.host().to_owned(),
                what: what.to_owned(),
                idle: self.idle,
            }),
        }
    }

    /// The client's form of a name in our repository at this host. A mirror is told whose image is meant.
    fn wire(&self, target: &Target) -> Reference {
        let up = &self.upstream;
        let place = format!("{}{}", up.authority, up.prefix);
        let repository = format!("{}{}", up.repository_prefix, self.reference.repository());
        let is_mirror = is_mirror(&self.reference, up);
        let registry = if is_mirror {
            self.reference.registry().to_owned()
        } else {
            place.clone()
        };
        let mut reference = match target {
            Target::Tag(tag) => Reference::with_tag(registry, repository, tag.clone()),
            Target::Digest(digest) => {
                Reference::with_digest(registry, repository, digest.to_string())
            }
        };
        if is_mirror {
            reference.set_mirror_registry(place);
        }
        reference
    }
}

/// True for a host that is not the registry itself under one of its names.
fn is_mirror(reference: &ImageRef, upstream: &Upstream) -> bool {
    let registry = reference.registry();
    let is_hub = registry == "docker.io" && upstream.authority == "registry-1.docker.io";
    upstream.authority != registry && !is_hub
}

fn name(reference: &ImageRef, upstream: &Upstream) -> String {
    if !is_mirror(reference, upstream) && upstream.prefix.is_empty() {
        return reference.registry().to_owned();
    }
    let scheme = if upstream.plain_http { "http" } else { "https" };
    format!("{scheme}://{}{}", upstream.authority, upstream.prefix)
}

fn client_config(upstream: &Upstream, idle: Duration) -> ClientConfig {
    let trust = |pem: &Vec<u8>| Certificate {
        encoding: CertificateEncoding::Pem,
        data: pem.clone(),
    };
    ClientConfig {
        protocol: if upstream.plain_http {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        accept_invalid_certificates: upstream.skip_verify,
        extra_root_certificates: upstream.authorities.iter().map(trust).collect(),
        connect_timeout: Some(CONNECT_TIMEOUT.min(idle)),
        read_timeout: Some(idle),
        user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
        platform_resolver: None,
        ..ClientConfig::default()
    }
}

/// True for hosts that are this machine, whatever the port.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Gives the process a TLS implementation, unless it has one.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that the process already has a provider: just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.evil.io",
            "127.0.0.1.evil.io:5000",
            "10.0.0.1:5000",
            "[::2]:5000",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn credentials_print_no_secret() {
        let basic = Credentials::Basic {
            username: "canary-user".into(),
            password: "canary-pass".into(),
        };
        let shown = format!("{basic:?} {:?}", Credentials::Bearer("canary-token".into()));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
