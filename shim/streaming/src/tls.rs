//! TLS of the streaming server: certificate and key from files, read again when they change.
//!
//! Called by: [`super::server`] for each connection. Invariants: a daemon does not start with an unusable pair, but a
//! running one continues with the pair it has; files are checked at most once a second.
//! Must not know: client authentication.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Error;

/// How often the files are checked, when clients connect.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The server's certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM file of the certificate and its chain. Absolute.
    pub certificate: PathBuf,
    /// PEM file of its key. Absolute.
    pub key: PathBuf,
}

type Stamps = [Option<SystemTime>; 2];

impl Identity {
    fn stamps(&self) -> Stamps {
        [&self.certificate, &self.key].map(|file| {
            std::fs::metadata(file)
                .and_then(|facts| facts.modified())
                .ok()
        })
    }

    fn load(&self) -> Result<TlsAcceptor, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Tls {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        };
        let certificates = CertificateDer::pem_file_iter(&self.certificate);
        let chain = certificates
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| failed(e.into()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| failed(e.into()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|e| failed(e.into()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

struct Loaded {
    acceptor: TlsAcceptor,
    stamps: Stamps,
    checked: Instant,
}

/// The identity in use.
pub struct Tls {
    identity: Identity,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads the files. Errors: they cannot be read, or do not match.
    pub fn open(identity: Identity) -> Result<Tls, Error> {
        let stamps = identity.stamps();
        let acceptor = identity.load()?;
        let loaded = Mutex::new(Loaded {
            acceptor,
            stamps,
            checked: Instant::now(),
        });
        Ok(Tls { identity, loaded })
    }

    /// Performs the TLS handshake with a client.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let acceptor = self.current();
        acceptor.accept(socket).await
    }

    fn current(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.checked.elapsed() >= RELOAD_INTERVAL {
            loaded.checked = Instant::now();
            let stamps = self.identity.stamps();
            if stamps != loaded.stamps {
                loaded.stamps = stamps;
                match self.identity.load() {
                    Ok(acceptor) => loaded.acceptor = acceptor,
                    Err(error) => {
                        let error = super::chain(&error);
                        tracing::warn!(
                            error,
                            "the changed certificate cannot be used; the old one stays"
                        );
                    }
                }
            }
        }
        loaded.acceptor.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A fresh key and a certificate for 127.0.0.1, made by openssl(1).
    fn renew(identity: &Identity) {
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=test"])
            .args([
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:false",
            ])
            .arg("-keyout")
            .arg(&identity.key)
            .arg("-out")
            .arg(&identity.certificate)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
    }

    /// Whether a client that trusts `certificate` alone gets through.
    async fn shakes(tls: &Tls, certificate: &Path) -> bool {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(certificate).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let name = "127.0.0.1".try_into().unwrap();
        let (client, server) = tokio::join!(connector.connect(name, client), tls.accept(server));
        client.is_ok() && server.is_ok()
    }

    #[tokio::test]
    async fn a_changed_certificate_is_used_and_a_broken_one_is_not() {
        let scratch = crate::scratch::Scratch::new("tls");
        let dir = &scratch.0;
        let identity = Identity {
            certificate: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        let missing = Tls::open(identity.clone()).err().unwrap().to_string();
        assert!(
            missing.contains("cert.pem") && missing.contains("key.pem"),
            "{missing}"
        );
        renew(&identity);
        let tls = Tls::open(identity.clone()).unwrap();
        let first = dir.join("first.pem");
        std::fs::copy(&identity.certificate, &first).unwrap();
        assert!(shakes(&tls, &first).await);
        let settle = || std::thread::sleep(RELOAD_INTERVAL + Duration::from_millis(50));
        settle();
        std::fs::write(&identity.key, "no key").unwrap();
        assert!(shakes(&tls, &first).await, "the pair it has stays");
        renew(&identity);
        settle();
        assert!(shakes(&tls, &identity.certificate).await);
        assert!(!shakes(&tls, &first).await, "the old one is gone");
    }
}
