//! Pushes an image to its registry.
//!
//! Called by: `pack`. It runs for a person, with that person's rights, so it goes wherever the registry leads; the daemon's
//! pulls do not use it.
//! Must not know: what the image holds.

use std::fs;
use std::path::PathBuf;
use std::sync::Once;

use clap::Args;
use http::HeaderValue;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use crate::error::Error;
use crate::pack::{MANIFEST, Packed, digest};
use crate::password;

/// How a registry is used.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// User name for the registry; the password is read from standard input
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// Use http; loopback registries always are
    #[arg(long)]
    pub plain_http: bool,
    /// A certificate authority to trust besides the usual ones, as PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Pushes blobs and manifest. Errors: the name is none, or the registry refuses, with its answer.
pub(crate) async fn packed(
    args: &RegistryArgs,
    reference: &str,
    packed: &Packed,
) -> Result<(), Error> {
    install_tls();
    let name: Reference = reference
        .parse()
        .map_err(|error| Error::because(&format!("read the name {reference}"), error))?;
    let registry = name.resolve_registry().to_owned();
    let failed = |error: oci_client::errors::OciDistributionError| {
        Error::because(&format!("push {reference} to {registry}"), error)
    };
    let auth = match &args.username {
        Some(user) => RegistryAuth::Basic(user.clone(), password()?),
        None => RegistryAuth::Anonymous,
    };
    let client = Client::new(config(args, &registry)?);
    client
        .auth(&name, &auth, RegistryOperation::Push)
        .await
        .map_err(failed)?;
    for blob in &packed.blobs {
        client
            .push_blob(&name, blob.clone(), &digest(blob))
            .await
            .map_err(failed)?;
    }
    let media_type = HeaderValue::from_static(MANIFEST);
    client
        .push_manifest_raw(&name, packed.manifest.clone(), media_type)
        .await
        .map_err(failed)?;
    Ok(())
}

fn config(args: &RegistryArgs, registry: &str) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::default();
    if args.plain_http || is_loopback(registry) {
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
