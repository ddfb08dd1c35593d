//! Fetches the signatures that a registry keeps beside an image.
//!
//! Called by: [`super::rules`], during a pull. Calls: the registry. Two places are looked at: the tag `sha256-DIGEST.sig` of
//! cosign, and the referrers of OCI 1.1 (the API, or the tag `sha256-DIGEST` of registries without it).
//! Invariants: documents, payloads and their number are bounded for a whole pull; nothing is written to the store; a signature
//! that cannot be used is no reason to look at no other, but a registry that does not answer ends the pull.
//! Not here: what a signature says, who made it.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::payload::{BUNDLE, SIGN_PREDICATE, Signature};
use crate::config::Limits;
use crate::endpoint::{ATTEMPTS, BACKOFF, BlobStream, Document, NextPage};
use crate::error::{Error, Kind};
use crate::manifest::{self, Blob};
use crate::reference::{Digest, Target};
use crate::registry::Registry;
use crate::verify::{self, Verifier};

/// Most signatures that one pull looks at.
const MAX_SIGNATURES: usize = 64;
/// Most referrers that one pull looks at.
const MAX_REFERRERS: usize = 32;
/// Most pages of a list of referrers that are read.
const MAX_PAGES: usize = 16;
/// Longest text of a signature. Bytes; that of the largest RSA key has 1368.
const MAX_SIGNATURE_BYTES: usize = 8 << 10;
/// Largest payload or bundle. Bytes.
const MAX_PAYLOAD_BYTES: u64 = 256 << 10;
/// All payloads and bundles of one pull. Bytes.
const MAX_ALL_BYTES: u64 = 1 << 20;
/// Most problems that are kept for the message.
const MAX_PROBLEMS: usize = 4;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of a simple signing layer with its signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The annotation that names the predicate of a bundle's statement.
const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
/// What cosign 2 calls the artifacts that hold simple signing layers, when it writes referrers.
const COSIGN_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// What clients that do not know artifact types write instead of one.
const UNTYPED: [&str; 3] = [
    "",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.oci.image.config.v1+json",
];

#[derive(Deserialize)]
struct SignatureManifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

impl Referrer {
    /// Whether it may be a signature.
    fn is_candidate(&self) -> bool {
        let kind = self.artifact_type.as_deref().unwrap_or_default();
        let predicate = self
            .annotations
            .as_ref()
            .and_then(|all| all.get(PREDICATE_TYPE));
        let is_other = predicate.is_some_and(|predicate| predicate != SIGN_PREDICATE);
        let is_known =
            kind == COSIGN_ARTIFACT || kind.starts_with(BUNDLE) || UNTYPED.contains(&kind);
        is_known && !is_other
    }
}

/// The signatures of one image, as far as they were fetched.
pub(super) struct Collector<'a> {
    registry: &'a Registry,
    limits: &'a Limits,
    bytes_left: u64,
    referrers_left: usize,
    seen: HashSet<(Digest, String)>,
    /// Whether there are more than [`MAX_SIGNATURES`].
    is_full: bool,
    pub(super) found: Vec<Signature>,
    /// Why some were not used.
    pub(super) problems: Vec<String>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(registry: &'a Registry, limits: &'a Limits) -> Self {
        Self {
            registry,
            limits,
            bytes_left: MAX_ALL_BYTES,
            referrers_left: MAX_REFERRERS,
            seen: HashSet::new(),
            is_full: false,
            found: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Fetches the signatures at cosign's tag for the image `digest`. Errors: the registry's.
    pub(super) async fn fetch_tagged(&mut self, digest: &Digest) -> Result<(), Error> {
        if self.is_full {
            return Ok(());
        }
        let target = Target::Tag(format!("sha256-{}.sig", digest.hex()));
        let document = self.document(&target).await;
        match self.usable(document)? {
            Some(document) => self.add_manifest(&target, document).await,
            None => Ok(()),
        }
    }

    /// Fetches the signatures that refer to the image `digest`. Errors: the registry's.
    pub(super) async fn fetch_referring(&mut self, digest: &Digest) -> Result<(), Error> {
        if self.is_full {
            return Ok(());
        }
        let mut page = None;
        for _ in 0..MAX_PAGES {
            let listed = self.referrers(digest, page.as_ref()).await;
            let Some((listed, next)) = self.usable(listed)? else {
                return Ok(());
            };
            self.add_listed(digest, listed).await?;
            if next.is_none() || self.is_full || self.referrers_left == 0 {
                return Ok(());
            }
            page = next;
        }
        self.problem(format!(
            "more than {MAX_PAGES} pages of referrers; the others are not looked at"
        ));
        Ok(())
    }

    /// A page of the referrers of the image `digest`; all of them from a registry without this API.
    async fn referrers(
        &self,
        digest: &Digest,
        page: Option<&NextPage>,
    ) -> Result<(Document, Option<NextPage>), Error> {
        let allowed = self.limits.max_manifest_bytes;
        match self.registry.referrers(digest, allowed, page).await {
            Err(error) if error.kind() == Kind::Missing && page.is_none() => {
                let tag = Target::Tag(format!("sha256-{}", digest.hex()));
                Ok((self.document(&tag).await?, None))
            }
            listed => listed,
        }
    }

    /// Adds the signatures in a list of referrers.
    async fn add_listed(&mut self, digest: &Digest, listed: Document) -> Result<(), Error> {
        let what = format!("the referrers of {digest}");
        let parsed = manifest::json::<Referrers>(&what, &listed.bytes);
        let parsed = parsed.map_err(|_| unreadable(&what));
        let Some(referrers) = self.usable(parsed)? else {
            return Ok(());
        };
        drop(listed);
        for referrer in referrers.manifests.iter().filter(|one| one.is_candidate()) {
            if self.is_full {
                break;
            }
            self.add_referrer(referrer).await?;
        }
        Ok(())
    }

    async fn add_referrer(&mut self, referrer: &Referrer) -> Result<(), Error> {
        let Ok(digest) = referrer.digest.parse::<Digest>() else {
            return Ok(());
        };
        let Some(left) = self.referrers_left.checked_sub(1) else {
            self.problem(format!(
                "more than {MAX_REFERRERS} referrers; the others are not looked at"
            ));
            return Ok(());
        };
        self.referrers_left = left;
        let target = Target::Digest(digest);
        let document = self.document(&target).await;
        match self.usable(document)? {
            Some(document) => self.add_manifest(&target, document).await,
            None => Ok(()),
        }
    }

    async fn document(&self, target: &Target) -> Result<Document, Error> {
        let allowed = self.limits.max_manifest_bytes;
        let document = self.registry.manifest(target, allowed).await?;
        if let Target::Digest(digest) = target {
            let what = format!("manifest {digest}");
            verify::check(&what, &document.bytes, digest, document.bytes.len() as u64)
                .map_err(|error| document.withhold(&what, error))?;
        }
        Ok(document)
    }

    /// Adds the signatures in the layers of a manifest.
    async fn add_manifest(&mut self, target: &Target, document: Document) -> Result<(), Error> {
        let what = format!("manifest {target}");
        let parsed = manifest::json::<SignatureManifest>(&what, &document.bytes);
        let Some(parsed) = self.usable(parsed.map_err(|_| unreadable(&what)))? else {
            return Ok(());
        };
        drop(document);
        for layer in parsed.layers {
            if self.is_full {
                break;
            }
            self.add_layer(layer).await?;
        }
        Ok(())
    }

    async fn add_layer(&mut self, layer: Layer) -> Result<(), Error> {
        let is_simple = layer.media_type == SIMPLE_SIGNING;
        if !is_simple && !layer.media_type.starts_with(BUNDLE) {
            return Ok(());
        }
        // That of a bundle is in the bundle.
        let mut annotations = layer.annotations.unwrap_or_default();
        let text = annotations.remove(SIGNATURE).filter(|_| is_simple);
        let signature = text.unwrap_or_default();
        if is_simple && signature.is_empty() {
            return Ok(());
        }
        let Ok(digest) = layer.digest.parse::<Digest>() else {
            return Ok(());
        };
        if !self.is_wanted(&digest, &signature) || !self.has_room_for(layer.size) {
            return Ok(());
        }
        let blob = Blob {
            digest,
            size: layer.size,
            media_type: layer.media_type,
        };
        let payload = self.payload(&blob).await;
        let Some(payload) = self.usable(payload)? else {
            return Ok(());
        };
        let read = match is_simple {
            true => Signature::simple(payload, &signature),
            false => Signature::bundle(&payload),
        };
        match read {
            Ok(signature) => self.found.push(signature),
            Err(problem) => self.problem(problem),
        }
        Ok(())
    }

    /// Whether a signature is to be looked at: short, not seen before, and not one too many. It counts as seen then.
    fn is_wanted(&mut self, digest: &Digest, signature: &str) -> bool {
        if signature.len() > MAX_SIGNATURE_BYTES {
            self.problem(format!(
                "the text of a signature has more than {MAX_SIGNATURE_BYTES} bytes"
            ));
            return false;
        }
        let key = (digest.clone(), signature.to_owned());
        if self.seen.contains(&key) {
            return false;
        }
        if self.seen.len() >= MAX_SIGNATURES {
            self.is_full = true;
            self.problem(format!(
                "more than {MAX_SIGNATURES} signatures; the others are not looked at"
            ));
            return false;
        }
        self.seen.insert(key)
    }

    /// Takes `size` bytes of those that payloads may have, if they may.
    fn has_room_for(&mut self, size: u64) -> bool {
        let Some(left) = self.bytes_left.checked_sub(size) else {
            self.problem(format!(
                "signatures of more than {MAX_ALL_BYTES} bytes in all"
            ));
            return false;
        };
        if size > MAX_PAYLOAD_BYTES {
            self.problem(format!(
                "a signature of more than {MAX_PAYLOAD_BYTES} bytes"
            ));
            return false;
        }
        self.bytes_left = left;
        true
    }

    /// Reads a small blob into memory, from the next host or again if it breaks off.
    async fn payload(&self, blob: &Blob) -> Result<Vec<u8>, Error> {
        let mut attempt = 1;
        loop {
            let read = match self.registry.blob(blob, None).await {
                Ok(mut stream) => match read_whole(&mut stream, blob).await {
                    Err(error) if error.is_of_source() && stream.give_up_host() => continue,
                    read => read.map_err(|error| stream.withhold(error)),
                },
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                    tracing::debug!(digest = %blob.digest, attempt, %error, "fetching a signature again");
                    tokio::time::sleep(error.pause(BACKOFF * attempt)).await;
                    attempt += 1;
                }
                read => return read,
            }
        }
    }

    /// The result, or `None` if this one is absent or cannot be used. Errors: the registry does not answer, or refuses.
    fn usable<T>(&mut self, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match result {
            Ok(usable) => Ok(Some(usable)),
            Err(error) => match error.kind() {
                Kind::Missing => Ok(None),
                Kind::Invalid | Kind::Limit | Kind::Corrupt => {
                    self.problem(error.to_string());
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }

    fn problem(&mut self, problem: String) {
        tracing::debug!(problem, "a signature is not used");
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Says nothing of the content, which may have come from another host.
fn unreadable(what: &str) -> Error {
    Error::invalid(what, "it is no list of signatures")
}

async fn read_whole(stream: &mut BlobStream, blob: &Blob) -> Result<Vec<u8>, Error> {
    let what = format!("blob {}", blob.digest);
    let mut verifier = Verifier::new(what, blob.digest.clone(), blob.size);
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await? {
        verifier.update(&chunk)?;
        bytes.extend_from_slice(&chunk);
    }
    verifier.finish()?;
    Ok(bytes)
}
