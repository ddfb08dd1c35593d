//! The HTTP clients: certificates, proxies, names, limits of a connection.
//!
//! Called by: [`super::wire`], once for the host itself and once for those where it leads. Invariants: a client follows no
//! redirect by itself, and takes no proxy from the environment; it resolves names by its policy alone, but for those of
//! proxies; only the client of the host itself presents a certificate or may accept any.
//! Not here: requests.

use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Proxy};

use super::address_policy::{AddressPolicy, Resolver};
use crate::mirrors::Upstream;
use crate::proxy::{Proxies, ProxyUrl};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Header fields of one answer; their bytes are bounded by the connection's own buffer (some 400 KiB).
const MAX_HEADERS: usize = 100;

/// How a client connects.
#[derive(Clone, Copy)]
pub(super) struct Connections<'a> {
    pub upstream: &'a Upstream,
    pub policy: AddressPolicy,
    /// The client is for the host itself.
    pub is_own: bool,
    pub proxies: &'a Arc<Proxies>,
    /// For whom names are looked up.
    pub tenant: &'a Arc<str>,
    /// The idle timeout, which a connection must not exceed; the timeouts of requests are [`super::Endpoint`]'s.
    pub idle: Duration,
}

/// How long to wait for a connection to a host or its proxy, TLS included; `idle` is the idle timeout.
pub(super) fn connect_timeout(upstream: &Upstream, idle: Duration) -> Duration {
    upstream.dial_timeout.unwrap_or(CONNECT_TIMEOUT).min(idle)
}

/// Builds a client. Errors: certificates that cannot be used.
pub(super) fn client(connections: Connections<'_>) -> Result<Client, reqwest::Error> {
    let Connections {
        upstream,
        policy,
        is_own,
        proxies,
        tenant,
        idle,
    } = connections;
    let mut authorities = Vec::new();
    for pem in &upstream.authorities {
        authorities.extend(Certificate::from_pem_bundle(pem)?);
    }
    let mut builder = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .dns_resolver(Resolver {
            policy,
            proxies: Arc::clone(proxies),
            tenant: Arc::clone(tenant),
        })
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .danger_accept_invalid_certs(is_own && upstream.skip_verify)
        .tls_certs_merge(authorities)
        .connect_timeout(connect_timeout(upstream, idle))
        .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")));
    if let Some(identity) = upstream.identity.as_ref().filter(|_| is_own) {
        builder = builder.identity(Identity::from_pem(identity.pem())?);
    }
    if !proxies.is_empty() {
        let proxies = Arc::clone(proxies);
        builder = builder.proxy(Proxy::custom(move |url| {
            proxies.of(url).map(ProxyUrl::url).cloned()
        }));
    }
    builder.build()
}

/// Gives the process a TLS implementation, unless it has one.
pub(super) fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that the process already has a provider: just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
