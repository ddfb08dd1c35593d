//! TLS of a guest's outgoing requests: its image decides whom it trusts.
//!
//! The roots are those of `/etc/ssl/certs/ca-certificates.crt` in the guest's root, the usual place in distribution
//! images. An image without that file trusts Mozilla's list as of the build of Coracle.
//! Invariant: certificates are always checked. The configuration is made at a guest's first request over TLS and kept.
//! There are no client certificates: `wasi:http` does not have them.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::{Error, Result};

/// What a server says by ALPN that is to be spoken to in HTTP/2. Source: RFC 9113, section 3.2.
pub(super) const HTTP2: &[u8] = b"h2";
/// The certificate authorities of an image.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Largest bundle that is read; Mozilla's is a quarter of a MiB.
const MAX_BUNDLE: u64 = 8 << 20;

/// What all connections of a guest share.
#[derive(Default)]
pub(super) struct Tls(OnceLock<Arc<ClientConfig>>);

impl Tls {
    /// One that trusts `pem` whatever the image says.
    #[cfg(test)]
    pub(super) fn trusting(pem: &[u8]) -> Self {
        let config = config(roots(pem)).unwrap_or_else(|e| panic!("{e}"));
        Self(OnceLock::from(config))
    }

    /// Does the TLS handshake with `host`, a name or an address as in URLs, over `stream`.
    /// Errors: its certificate is not valid for `host`, or it offers no safe TLS.
    pub(super) async fn wrap(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.trim_end_matches('.').to_owned())
            .map_err(|_| Error::HttpRequestUriInvalid)?;
        let config = match self.0.get() {
            Some(config) => Arc::clone(config),
            None => {
                let made = config(roots(&bundle()))?;
                Arc::clone(self.0.get_or_init(|| made))
            }
        };
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(refused)
    }
}

fn config(roots: RootCertStore) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::InternalError(Some(error.to_string())))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The image's own bundle; empty if it has none.
fn bundle() -> Vec<u8> {
    use std::io::Read as _;
    let mut pem = Vec::new();
    if let Ok(file) = std::fs::File::open(BUNDLE) {
        let _ = file.take(MAX_BUNDLE).read_to_end(&mut pem);
    }
    pem
}

/// The certificates of `pem` that can be roots; the built-in list if there are none.
fn roots(pem: &[u8]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn refused(error: io::Error) -> Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        Some(_) => Error::TlsProtocolError,
        None => Error::Tls(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn without_a_bundle_the_built_in_roots_count() {
        let built_in = webpki_roots::TLS_SERVER_ROOTS.len();
        for pem in [
            &b""[..],
            b"not PEM",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(roots(pem).len(), built_in);
        }
        assert!(config(roots(b"")).is_ok());
    }
}
