//! Certificates made by openssl(1), and TLS before a scripted registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

/// What the server's certificate is for.
const NAMES: &str = "IP:127.0.0.1,IP:0.0.0.0,DNS:registry.invalid,DNS:cdn.invalid";

/// An authority, and certificates that it signed, as files of a directory: `ca.pem`, `server.pem`, `client.pem` with their
/// keys in `NAME.key`, `both.pem` with the client's certificate and key, and `other.pem` of another authority.
pub struct Certificates(pub PathBuf);

impl Certificates {
    /// Makes them in `dir`, which exists.
    pub fn new(dir: &Path) -> Self {
        for name in ["ca", "other"] {
            openssl(
                dir,
                &format!(
                    "req -x509 {KEY} -subj /CN={name} -days 2 -keyout {name}.key -out {name}.pem"
                ),
            );
        }
        std::fs::write(dir.join("server.ext"), format!("subjectAltName={NAMES}\n")).unwrap();
        std::fs::write(dir.join("client.ext"), "subjectAltName=DNS:node.invalid\n").unwrap();
        for name in ["server", "client"] {
            openssl(
                dir,
                &format!("req {KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
            );
            openssl(
                dir,
                &format!(
                    "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.pem"
                ),
            );
        }
        let parts = ["client.pem", "client.key"].map(|name| std::fs::read(dir.join(name)).unwrap());
        std::fs::write(dir.join("both.pem"), parts.concat()).unwrap();
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(dir.join("both.pem"), secret).unwrap();
        Self(dir.to_owned())
    }

    fn config(&self, wants_client: bool) -> ServerConfig {
        let certificate = |name: &str| CertificateDer::from_pem_file(self.0.join(name)).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if wants_client {
            let mut roots = RootCertStore::empty();
            roots.add(certificate("ca.pem")).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.0.join("server.key")).unwrap();
        builder
            .with_single_cert(vec![certificate("server.pem")], key)
            .unwrap()
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(dir: &Path, arguments: &str) {
    let made = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "openssl {arguments}: {made:?}");
}

/// A server that speaks TLS and passes what it gets on to another in plain. Ends on drop.
pub struct TlsFront {
    /// `127.0.0.1:PORT`.
    pub host: String,
    task: tokio::task::JoinHandle<()>,
}

impl TlsFront {
    /// Passes on to `to`; `wants_client`: refuses clients without a certificate of the authority.
    pub async fn start(certificates: &Certificates, wants_client: bool, to: &str) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(certificates.config(wants_client)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let to = to.to_owned();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    let mut near = acceptor.accept(stream).await.ok()?;
                    let mut far = TcpStream::connect(to).await.ok()?;
                    tokio::io::copy_bidirectional(&mut near, &mut far)
                        .await
                        .ok()
                });
            }
        });
        Self { host, task }
    }

    pub fn port(&self) -> &str {
        self.host.rsplit_once(':').unwrap().1
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}
