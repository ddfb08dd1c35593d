//! The rules of a policy for one image: accepted as it is, refused, or to be signed by certain keys under certain names.
//!
//! Called by: the pull, which looks up the rules before its first request ([`for_image`]), and checks the signatures between
//! manifest and blobs ([`Rules::check`]).
//! Invariants: whatever cannot be read or verified refuses the image; each requirement of a scope must be met; a signature
//! counts only for a digest that the pull has verified.
//! Not here: requests, formats.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::fetch::Collector;
use super::identity::SignedIdentity;
use super::key::PublicKey;
use super::payload::{Claim, Signature};
use super::policy::{Policy, Requirement};
use crate::config::{ImagesConfig, Limits};
use crate::error::Error;
use crate::metadata::Record;
use crate::reference::{Digest, ImageRef};
use crate::registry::Registry;

/// The longest namespace: that of a DNS label.
const MAX_NAMESPACE_BYTES: usize = 63;
/// The longest name in a signature that a message shows.
const MAX_SHOWN: usize = 200;

/// What a policy demands of an image before it is pulled.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    /// What its signatures have to show; `None` for nothing.
    pub rules: Option<Rules>,
    /// Whether they come from the policy that a namespace has for itself, which no other namespace has agreed to.
    pub is_of_namespace: bool,
}

/// The rules for one image whose signatures have to be checked.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Policy and scope, for messages.
    source: String,
    signers: Vec<Signer>,
}

/// One requirement: any of these keys, with a name that fits.
#[derive(Debug)]
struct Signer {
    keys: Vec<PublicKey>,
    identity: SignedIdentity,
}

/// Why no signature meets a requirement: the later, the nearer one came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    None,
    OtherKey(usize),
    Unreadable(String),
    OtherImage(String),
    OtherName(Option<String>),
}

/// What the policy for pods of `namespace` demands of `image`: its own policy if it has one, else the node's. Blocking.
///
/// Errors: [`Error::Signature`]: the policy rejects the image, or cannot be read, or demands what this node cannot verify.
pub(crate) fn for_image(
    config: &ImagesConfig,
    namespace: &str,
    image: &ImageRef,
) -> Result<Demands, Error> {
    let mut found = namespace_policy(config, namespace)?;
    let is_of_namespace = found.is_some();
    if found.is_none() {
        found = node_policy(config)?;
    }
    let rules = match &found {
        Some((path, policy)) => rules_of(path, policy, image)?,
        None => None,
    };
    Ok(Demands {
        rules,
        is_of_namespace,
    })
}

/// The rules that a policy has for `image`; `None` if it is accepted as it is. Blocking.
///
/// Errors: as for [`for_image`].
pub(super) fn rules_of(
    path: &Path,
    policy: &Policy,
    image: &ImageRef,
) -> Result<Option<Rules>, Error> {
    let (scope, requirements) = policy.requirements(image);
    let source = format!("{}, scope {scope:?}", path.display());
    let refused = |problem: String| Error::signature(&source, problem);
    let mut signers = Vec::new();
    for requirement in requirements {
        if let Some(problem) = requirement.unsupported() {
            return Err(refused(problem.to_owned()));
        }
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} | Requirement::SignedBy { .. } => {
                return Err(refused("it rejects this image".to_owned()));
            }
            Requirement::SigstoreSigned(signed) => signers.push(Signer {
                keys: signed.keys().map_err(refused)?,
                identity: signed.signed_identity.clone(),
            }),
        }
    }
    Ok((!signers.is_empty()).then_some(Rules { source, signers }))
}

/// The node's policy, for namespaces that have none for themselves. `None`: none is configured.
pub(super) fn node_policy(config: &ImagesConfig) -> Result<Option<(PathBuf, Policy)>, Error> {
    let Some(path) = &config.signature_policy else {
        return Ok(None);
    };
    match read(path)? {
        Some(policy) => Ok(Some((path.clone(), policy))),
        None => Err(absent(path)),
    }
}

/// The policy that `namespace` has for itself.
pub(super) fn namespace_policy(
    config: &ImagesConfig,
    namespace: &str,
) -> Result<Option<(PathBuf, Policy)>, Error> {
    let Some(dir) = config.signature_policy_dir.as_ref() else {
        return Ok(None);
    };
    if namespace.is_empty() {
        return Ok(None);
    }
    if !is_namespace(namespace) {
        let problem = format!("{:?} is no name of a namespace", shown(namespace));
        return Err(Error::signature(&dir.display().to_string(), problem));
    }
    let path = dir.join(format!("{namespace}.json"));
    match read(&path)? {
        Some(policy) => Ok(Some((path, policy))),
        None => check_absent(dir, &path).map(|()| None),
    }
}

/// Errors: the namespace may well have a policy, which cannot be found: a link leads nowhere, or the directory is not there.
fn check_absent(dir: &Path, path: &Path) -> Result<(), Error> {
    let refused =
        |path: &Path, problem: String| Err(Error::signature(&path.display().to_string(), problem));
    match std::fs::metadata(dir) {
        Ok(facts) if facts.is_dir() => {}
        Ok(_) => {
            let problem = "images.signature_policy_dir is no directory".to_owned();
            return refused(dir, problem);
        }
        Err(error) => {
            let problem = format!("images.signature_policy_dir cannot be read: {error}");
            return refused(dir, problem);
        }
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => refused(path, format!("it cannot be read: {error}")),
        Ok(_) => refused(path, "it is a link to what is not there".to_owned()),
    }
}

fn read(path: &Path) -> Result<Option<Policy>, Error> {
    Policy::read(path).map_err(|problem| Error::signature(&path.display().to_string(), problem))
}

fn absent(path: &Path) -> Error {
    Error::signature(&path.display().to_string(), "it is not there".to_owned())
}

/// What a name of a file may be made of.
fn is_namespace(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAMESPACE_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_SHOWN)]
}

impl Rules {
    /// What a successful check has shown of `image`, to be kept with it: a digest for each requirement, over its keys, its
    /// identity and the image's name.
    pub(crate) fn facts(&self, image: &ImageRef) -> BTreeSet<Digest> {
        let signers = self.signers.iter();
        signers.map(|signer| signer.fact(image)).collect()
    }

    /// Whether pulls of `record` have shown all of that, or root has imported it under this name.
    pub(super) fn are_met_by(&self, record: &Record, image: &ImageRef) -> bool {
        record.pins.contains(&image.to_string()) || self.facts(image).is_subset(&record.verified)
    }

    /// Checks the signatures that `registry` has for `image`, whose manifest or index has one of `digests`.
    ///
    /// Errors: [`Error::Signature`] if they do not suffice; the registry's.
    pub(crate) async fn check(
        &self,
        registry: &Registry,
        image: &ImageRef,
        digests: &[Digest],
        limits: &Limits,
    ) -> Result<(), Error> {
        let mut signatures = Collector::new(registry, limits);
        let mut refusal = Refusal::None;
        for is_tagged in [true, false] {
            for digest in digests {
                match is_tagged {
                    true => signatures.fetch_tagged(digest).await?,
                    false => signatures.fetch_referring(digest).await?,
                }
                match self.judge(image, digests, &signatures.found) {
                    Ok(()) => return Ok(()),
                    Err(nearest) => refusal = nearest,
                }
            }
        }
        let mut problem = self.explain(&refusal);
        if !signatures.problems.is_empty() {
            problem = format!("{problem} (not used: {})", signatures.problems.join("; "));
        }
        Err(Error::signature(&self.source, problem))
    }

    /// Errors: the refusal of the first requirement that is not met.
    fn judge(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<(), Refusal> {
        self.signers
            .iter()
            .try_for_each(|signer| signer.judge(image, digests, signatures))
    }

    fn explain(&self, refusal: &Refusal) -> String {
        match refusal {
            Refusal::None => "the image has no signature".to_owned(),
            Refusal::OtherKey(1) => "the image's one signature is not by the key".to_owned(),
            Refusal::OtherKey(count) => {
                format!("none of the image's {count} signatures is by the key")
            }
            Refusal::Unreadable(problem) => {
                format!("a signature by the key is unusable: {problem}")
            }
            Refusal::OtherImage(digest) => {
                format!("the signature by the key is for another image, {digest}")
            }
            Refusal::OtherName(name) => {
                let named = match name {
                    Some(name) => format!("the name {:?}", shown(name)),
                    None => "no name".to_owned(),
                };
                let identities = self.signers.iter().map(|signer| &signer.identity);
                let mut hints = identities.map(|identity| identity.hint(name.as_deref()));
                let hint = hints.find(|hint| !hint.is_empty()).unwrap_or_default();
                format!(
                    "the signature by the key has {named}, which signedIdentity does not accept{hint}"
                )
            }
        }
    }
}

impl Signer {
    /// See [`Rules::facts`]. It stays the same from build to build.
    fn fact(&self, image: &ImageRef) -> Digest {
        let mut keys: Vec<Digest> = self.keys.iter().map(PublicKey::digest).collect();
        keys.sort();
        let keys: Vec<&str> = keys.iter().map(Digest::as_str).collect();
        let text = serde_json::json!([image.to_string(), keys, self.identity]);
        Digest::of(text.to_string().as_bytes())
    }

    /// Errors: how near the nearest signature came.
    fn judge(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<(), Refusal> {
        let mut nearest = match signatures.len() {
            0 => Refusal::None,
            count => Refusal::OtherKey(count),
        };
        for signature in signatures {
            let mut claims = self.keys.iter().filter_map(|key| signature.claims(key));
            let refusal = match claims.next() {
                None => continue,
                Some(Err(problem)) => Refusal::Unreadable(problem),
                Some(Ok(claims)) => match self.judge_claims(image, digests, &claims) {
                    Ok(()) => return Ok(()),
                    Err(refusal) => refusal,
                },
            };
            nearest = nearest.max(refusal);
        }
        Err(nearest)
    }

    fn judge_claims(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        claims: &[Claim],
    ) -> Result<(), Refusal> {
        let mut nearest = Refusal::Unreadable("it names no image".to_owned());
        for claim in claims {
            let refusal = if !digests.contains(&claim.digest) {
                Refusal::OtherImage(claim.digest.to_string())
            } else if !self.identity.accepts(image, claim.name.as_deref()) {
                Refusal::OtherName(claim.name.clone())
            } else {
                return Ok(());
            };
            nearest = nearest.max(refusal);
        }
        Err(nearest)
    }
}

/// Reads a policy and all its keys, as a pull would. Returns what this node cannot verify, with the scope: images there are
/// refused. Blocking. Errors: [`Error::Signature`]: pulls would be refused because it cannot be read.
pub fn check_signature_policy(path: &Path) -> Result<Vec<String>, Error> {
    let policy = read(path)?.ok_or_else(|| absent(path))?;
    let mut unsupported = Vec::new();
    for (scope, requirements) in policy.all() {
        for requirement in requirements {
            if let Some(problem) = requirement.unsupported() {
                unsupported.push(format!("scope {scope:?}: {problem}"));
            } else if let Requirement::SigstoreSigned(signed) = requirement {
                let source = format!("{}, scope {scope:?}", path.display());
                signed
                    .keys()
                    .map_err(|problem| Error::signature(&source, problem))?;
            }
        }
    }
    Ok(unsupported)
}
