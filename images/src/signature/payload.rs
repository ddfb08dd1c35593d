//! Signatures as cosign writes them: what is signed, and what it says. Strangers' JSON in, checked values out. Pure.
//!
//! Called by: [`super::fetch`] with what a registry has sent, [`super::rules`] with keys. Two formats: simple signing (a JSON
//! document, its signature beside it) and the Sigstore bundle (an in-toto statement in a DSSE envelope).
//! Sources: cosign's SIGNATURE_SPEC.md and BUNDLE_SPEC.md, containers-signature(5), the protocol of DSSE v1.
//! Invariants: claims are read only from a payload that a key has verified; a payload of another type, or with fields that
//! could be read in two ways, claims nothing.
//! Not here: which keys and names are trusted, requests.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::key::PublicKey;
use crate::reference::Digest;

/// The type that a simple signing document must state.
const SIMPLE_TYPE: &str = "cosign container image signature";
/// How the media types of Sigstore bundles begin.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const STATEMENT: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPES: [&str; 2] = [
    "https://in-toto.io/Statement/v1",
    "https://in-toto.io/Statement/v0.1",
];
/// The predicate of a statement that is the signature of an image: others say how it was built, or what is in it.
pub(super) const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// Most signatures in one envelope.
const MAX_SIGNATURES: usize = 16;
/// Most subjects of a statement.
const MAX_SUBJECTS: usize = 64;

/// A payload and its signatures; nothing is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    format: Format,
    payload: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    SimpleSigning,
    Statement,
}

/// What a signature says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// The digest of the manifest or index.
    pub digest: Digest,
    /// The name; `None` in formats that need not have one.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct SimpleSigning {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: CriticalImage,
    identity: CriticalIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CriticalImage {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CriticalIdentity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: Option<String>,
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

impl Signature {
    /// A simple signing document, and the base64 of its signature. Errors: what is wrong.
    pub(super) fn simple(payload: Vec<u8>, signature: &str) -> Result<Self, String> {
        let signature = decode("the signature", signature)?;
        Ok(Self {
            format: Format::SimpleSigning,
            payload,
            signatures: vec![signature],
        })
    }

    /// A Sigstore bundle. Errors: what is wrong.
    pub(super) fn bundle(bytes: &[u8]) -> Result<Self, String> {
        let bundle: Bundle = json("the bundle", bytes)?;
        if !bundle.media_type.starts_with(BUNDLE) {
            return Err("the bundle is of another type".to_owned());
        }
        let envelope = match (bundle.dsse_envelope, bundle.message_signature) {
            (Some(envelope), None) => envelope,
            _ => return Err("the bundle has no statement, or more than that".to_owned()),
        };
        if envelope.payload_type != STATEMENT {
            return Err("the bundle holds no in-toto statement".to_owned());
        }
        if envelope.signatures.len() > MAX_SIGNATURES {
            return Err(format!(
                "the bundle has more than {MAX_SIGNATURES} signatures"
            ));
        }
        let signatures = envelope.signatures.iter();
        let signatures = signatures.map(|one| decode("a signature of the bundle", &one.sig));
        Ok(Self {
            format: Format::Statement,
            payload: decode("the statement", &envelope.payload)?,
            signatures: signatures.collect::<Result<_, _>>()?,
        })
    }

    /// The bytes that are signed.
    fn message(&self) -> Cow<'_, [u8]> {
        match self.format {
            Format::SimpleSigning => Cow::Borrowed(&self.payload),
            Format::Statement => {
                let head = format!(
                    "DSSEv1 {} {STATEMENT} {} ",
                    STATEMENT.len(),
                    self.payload.len()
                );
                Cow::Owned([head.as_bytes(), &self.payload].concat())
            }
        }
    }

    /// What it says, if `key` has signed it: `None` if not. Errors: it is signed, and says nothing that is understood.
    pub(super) fn claims(&self, key: &PublicKey) -> Option<Result<Vec<Claim>, String>> {
        let message = self.message();
        let mut signatures = self.signatures.iter();
        let is_signed = signatures.any(|signature| key.verifies(&message, signature));
        is_signed.then(|| match self.format {
            Format::SimpleSigning => simple_claim(&self.payload).map(|claim| vec![claim]),
            Format::Statement => statement_claims(&self.payload),
        })
    }
}

fn simple_claim(payload: &[u8]) -> Result<Claim, String> {
    let critical = json::<SimpleSigning>("its payload", payload)?.critical;
    if critical.kind != SIMPLE_TYPE {
        return Err(format!("its critical.type is not {SIMPLE_TYPE:?}"));
    }
    let digest = critical.image.docker_manifest_digest.parse();
    Ok(Claim {
        digest: digest.map_err(|_| "its docker-manifest-digest is no sha256".to_owned())?,
        name: Some(critical.identity.docker_reference),
    })
}

fn statement_claims(payload: &[u8]) -> Result<Vec<Claim>, String> {
    let statement: Statement = json("its statement", payload)?;
    if !STATEMENT_TYPES.contains(&statement.kind.as_str()) {
        return Err("its statement is of another type".to_owned());
    }
    if statement.predicate_type != SIGN_PREDICATE {
        return Err(format!("its predicateType is not {SIGN_PREDICATE:?}"));
    }
    if statement.subject.len() > MAX_SUBJECTS {
        return Err(format!(
            "its statement has more than {MAX_SUBJECTS} subjects"
        ));
    }
    let claim = |subject: Subject| {
        let digest = format!("sha256:{}", subject.digest.sha256?).parse().ok()?;
        let name = subject.name.filter(|name| !name.is_empty());
        Some(Claim { digest, name })
    };
    Ok(statement.subject.into_iter().filter_map(claim).collect())
}

fn json<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, String> {
    // The error's text may repeat what a stranger wrote.
    serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{what} is not what it should be at line {line}, column {column}")
    })
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|_| format!("{what} is not base64"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests;
