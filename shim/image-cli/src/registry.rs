//! The registry that images are pushed to.
//!
//! Called by: `pack` and `push`. It runs for a person, with that person's rights, so it goes wherever the registry leads; the
//! daemon's pulls do not use it.
//! Invariants: a blob is streamed; one that the registry has is not sent; credentials go to the registry of the name alone.
//! Must not know: what the image holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Once;

use bytes::Bytes;
use clap::Args;
use http::HeaderValue;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Error;
use crate::password;
use crate::progress::Count;

/// Bytes of a blob that are read at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for the registry.
const PIECES: usize = 4;

/// How a registry is used.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// User name for the registry; the password is read from standard input
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// Credentials as `docker login` writes them, in a file that only its owner can read; root uses images.auth_file of the
    /// configuration unless told otherwise
    #[arg(long, value_name = "FILE", conflicts_with = "username")]
    pub auth_file: Option<PathBuf>,
    /// Use http; loopback registries always are
    #[arg(long)]
    pub plain_http: bool,
    /// A certificate authority to trust besides the usual ones, as PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// What a registry is told of whoever pushes.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user name and a password.
    Basic(String, String),
    /// A token for the registry, used unchanged.
    Bearer(String),
    /// A refresh token, which the registry's realm gives tokens for.
    Identity(String),
}

/// Finds credentials: by a file, or else the one that is configured, and the name of an image.
pub type FindLogin = dyn Fn(Option<&Path>, &str) -> Result<Option<Login>, String>;

/// What is configured about registries.
pub struct Registries {
    /// Those without TLS, as `host` or `host:port`, besides loopback ones.
    pub plain_http: Vec<String>,
    /// Finds the credentials for the image of this name in a file as `docker login` writes it; without a file, in the one that
    /// is configured. An error is a sentence.
    pub login: Box<FindLogin>,
}

/// One repository of a registry.
pub(crate) struct Repository {
    client: Client,
    name: Reference,
}

impl Repository {
    /// Connects to the registry of `name` and shows it the credentials. Errors: the name is none; the registry refuses.
    pub(crate) async fn open(
        args: &RegistryArgs,
        registries: &Registries,
        name: &str,
    ) -> Result<Self, Error> {
        install_tls();
        let parsed: Result<Reference, _> = name.parse();
        let parsed =
            parsed.map_err(|error| Error::because(&format!("read the name {name}"), error))?;
        let registry = parsed.resolve_registry().to_owned();
        let auth = auth(args, registries, name)?;
        let repository = Self {
            client: Client::new(config(args, registries, &registry)?),
            name: parsed,
        };
        let (client, name) = (&repository.client, &repository.name);
        let entered = client.auth(name, &auth, RegistryOperation::Push).await;
        entered.map_err(|error| repository.failed(error))?;
        Ok(repository)
    }

    fn failed(&self, error: OciDistributionError) -> Error {
        let (name, registry) = (&self.name, self.name.resolve_registry());
        Error::because(&format!("push {name} to {registry}"), error)
    }

    /// Whether it has a blob. A registry that does not say so gets it again.
    pub(crate) async fn has(&self, digest: &str) -> bool {
        let found = self.client.blob_exists(&self.name, digest).await;
        found.unwrap_or(false)
    }

    /// Pushes a blob of `size` bytes, and counts them.
    pub(crate) async fn blob(
        &self,
        digest: &str,
        size: u64,
        bytes: impl Read + Send + 'static,
        count: &Count,
    ) -> Result<(), Error> {
        let stream = stream(bytes, count.clone());
        let pushed = self
            .client
            .push_blob_stream(&self.name, stream, digest, Some(size));
        pushed.await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// Pushes a manifest or an index: by the tag of the repository's name, or by `digest` if there is one.
    pub(crate) async fn manifest(
        &self,
        bytes: Vec<u8>,
        media_type: &str,
        digest: Option<&str>,
    ) -> Result<(), Error> {
        let name = match digest {
            Some(digest) => self.name.clone_with_digest(digest.to_owned()),
            None => self.name.clone(),
        };
        let media_type = HeaderValue::from_str(media_type).map_err(|error| {
            Error::because(&format!("read the media type {media_type:?}"), error)
        })?;
        let pushed = self
            .client
            .push_manifest_raw(&name, bytes, media_type)
            .await;
        pushed.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

/// Reads on a thread of its own: files are no business of the async threads.
fn stream(
    mut bytes: impl Read + Send + 'static,
    count: Count,
) -> ReceiverStream<Result<Bytes, OciDistributionError>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let piece = match bytes.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => {
                    count.add(read as u64);
                    piece.truncate(read);
                    Ok(piece.into())
                }
                Err(error) => Err(error.into()),
            };
            let is_end = piece.is_err();
            // An error means that the request has ended.
            if sender.blocking_send(piece).is_err() || is_end {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

fn auth(args: &RegistryArgs, registries: &Registries, name: &str) -> Result<RegistryAuth, Error> {
    if let Some(user) = &args.username {
        return Ok(RegistryAuth::Basic(user.clone(), password()?));
    }
    let login = (registries.login)(args.auth_file.as_deref(), name).map_err(Error::new)?;
    match login {
        None => Ok(RegistryAuth::Anonymous),
        Some(Login::Basic(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Some(Login::Bearer(token)) => Ok(RegistryAuth::Bearer(token)),
        Some(Login::Identity(_)) => Err(Error::new(format!(
            "the credentials for {name} are an identity token, with which nothing can be pushed; use --username"
        ))),
    }
}

fn config(
    args: &RegistryArgs,
    registries: &Registries,
    registry: &str,
) -> Result<ClientConfig, Error> {
    // One request for each blob, as most registries expect; the chunked form is for whoever does not know the size.
    let mut config = ClientConfig {
        use_monolithic_push: true,
        ..ClientConfig::default()
    };
    let is_plain = registries.plain_http.iter().any(|plain| plain == registry);
    if args.plain_http || is_plain || is_loopback(registry) {
        config.protocol = ClientProtocol::HttpsExcept(vec![registry.to_owned()]);
    }
    if let Some(path) = &args.ca {
        let data = fs::read(path)
            .map_err(|error| Error::because(&format!("read {}", path.display()), error))?;
        let encoding = CertificateEncoding::Pem;
        config
            .extra_root_certificates
            .push(Certificate { encoding, data });
    }
    Ok(config)
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Gives the process a TLS implementation.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that the process already has a provider: just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
