//! Signs images as cosign does (simple signing, at the tag `sha256-DIGEST.sig`), with keys of the openssl command.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{OCI_MANIFEST, Pushed, descriptor, push_blob, push_manifest};
use crate::Outcome;

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// A key pair in a directory of the test's: ECDSA with P-256, as `cosign generate-key-pair` makes it.
#[derive(Debug)]
pub struct Signer {
    dir: PathBuf,
}

impl Signer {
    /// Makes a key in `dir`, which is made. Errors: no openssl.
    pub fn new(dir: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        let signer = Self {
            dir: dir.to_owned(),
        };
        let curve = "ec_paramgen_curve:P-256";
        let (private, public) = (signer.path("key"), signer.path("pub"));
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            curve,
            "-out",
            &private,
        ])?;
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public])?;
        Ok(signer)
    }

    /// The file of the public key.
    pub fn public(&self) -> String {
        self.path("pub")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Pushes a signature of `image`, which is in `repository`, under the repository's name alone, as cosign signs.
    pub fn sign(&self, host: &str, repository: &str, image: &Pushed) -> Outcome<()> {
        let payload = json!({"critical": {
            "identity": {"docker-reference": format!("{host}/{repository}")},
            "image": {"docker-manifest-digest": image.digest},
            "type": "cosign container image signature",
        }, "optional": null});
        let payload = payload.to_string().into_bytes();
        std::fs::write(self.path("payload"), &payload)?;
        let (key, input, output) = (
            self.path("key"),
            self.path("payload"),
            self.path("signature"),
        );
        openssl(&["dgst", "-sha256", "-sign", &key, "-out", &output, &input])?;
        let mut layer = descriptor(SIMPLE_SIGNING, &payload);
        let signature = STANDARD.encode(std::fs::read(&output)?);
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(EMPTY, b"{}"), "layers": [layer],
        });
        push_blob(host, repository, b"{}")?;
        push_blob(host, repository, &payload)?;
        let tag = format!("{}.sig", image.digest.replace(':', "-"));
        push_manifest(
            host,
            repository,
            &tag,
            (OCI_MANIFEST, manifest.to_string().as_bytes()),
        )?;
        Ok(())
    }
}

fn openssl(arguments: &[&str]) -> Outcome<()> {
    let done = Command::new("openssl").args(arguments).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!(
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        )
        .into()),
    }
}
