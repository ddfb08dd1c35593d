//! TLS of the streaming server: a certificate and a key from files, read anew when they change.
//!
//! Called by: [`super::server`] for each connection. Invariants: a pair that cannot be used keeps the daemon from
//! starting, but not from going on with the pair it has; files are looked at once a second at most.
//! Not here: who trusts the certificate.

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

/// How often the files are looked at, when clients come.
const LOOK: Duration = Duration::from_secs(1);

/// Who the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM file of the certificate and those that vouch for it. Absolute.
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
    looked: Instant,
}

/// The identity in use.
pub struct Tls {
    identity: Identity,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads the files. Errors: they cannot be read, or do not belong together.
    pub fn open(identity: Identity) -> Result<Tls, Error> {
        let stamps = identity.stamps();
        let acceptor = identity.load()?;
        let loaded = Mutex::new(Loaded {
            acceptor,
            stamps,
            looked: Instant::now(),
        });
        Ok(Tls { identity, loaded })
    }

    /// Shakes hands with a client.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let acceptor = self.current();
        acceptor.accept(socket).await
    }

    fn current(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK {
            loaded.looked = Instant::now();
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
