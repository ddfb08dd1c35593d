//! The rules of a policy for one image: accepted as it is, refused, or to be signed by certain keys under certain names.
//!
//! Called by: the pull, which looks up the rules before its first request ([`for_image`]), and checks the signatures between
//! manifest and blobs ([`Rules::check`]).
//! Invariants: whatever cannot be read or verified refuses the image; each requirement of a scope must be met; a signature
//! counts only for a digest that the pull has verified; signatures are verified on a few threads that may block.
//! Not here: requests, formats.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::fetch::Collector;
use super::files::{absent, namespace_policy, node_policy, read, shown};
use super::identity::SignedIdentity;
use super::key::PublicKey;
use super::payload::{Claim, Signature};
use super::policy::{Policy, Requirement};
use crate::blobs::blocking;
use crate::config::{ImagesConfig, Limits};
use crate::error::Error;
use crate::metadata::Record;
use crate::record::Facts;
use crate::reference::{Digest, ImageRef};
use crate::registry::Registry;

/// Threads that verify signatures, for all pulls: a registry may send many, and a policy may have many keys.
static VERIFIERS: Semaphore = Semaphore::const_new(2);

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
    signers: Arc<Vec<Signer>>,
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
    Ok((!signers.is_empty()).then(|| Rules {
        source,
        signers: Arc::new(signers),
    }))
}

impl Rules {
    /// Whether pulls of `record` under this name have met each requirement by a key that it still has, or root has imported
    /// it under this name.
    pub(super) fn are_met_by(&self, record: &Record, image: &ImageRef) -> bool {
        let name = image.to_string();
        let proven = record.proven.get(&name);
        let mut signers = self.signers.iter();
        record.pins.contains(&name)
            || signers.all(|signer| {
                let mut facts = signer.keys.iter().map(|key| signer.fact(image, [key]));
                facts.any(|fact| proven.is_some_and(|proven| proven.contains(&fact)))
                    || record.has_name(&name)
                        && record.verified.contains(&signer.fact(image, &signer.keys))
            })
    }

    /// What earlier builds look for, once all requirements are met: a fact of all keys of each together.
    pub(crate) fn earlier_facts(&self, image: &ImageRef) -> Facts {
        let facts = self.signers.iter();
        facts
            .map(|signer| signer.fact(image, &signer.keys))
            .collect()
    }

    /// Checks the signatures that `registry` has for `image`, whose manifest or index has one of `digests`. Returns what they
    /// have shown.
    ///
    /// Errors: [`Error::Signature`] if they do not suffice; the registry's.
    pub(crate) async fn check(
        &self,
        registry: &Registry,
        image: &ImageRef,
        digests: &[Digest],
        limits: &Limits,
    ) -> Result<Facts, Error> {
        let mut signatures = Collector::new(registry, limits);
        let (mut refusal, mut judged) = (Refusal::None, 0);
        for is_tagged in [true, false] {
            for digest in digests {
                match is_tagged {
                    true => signatures.fetch_tagged(digest).await?,
                    false => signatures.fetch_referring(digest).await?,
                }
                if signatures.found.len() == judged {
                    continue;
                }
                match self.judge(image, digests, &mut signatures.found).await? {
                    Ok(facts) => return Ok(facts),
                    Err(nearest) => refusal = nearest,
                }
                judged = signatures.found.len();
            }
        }
        let mut problem = self.explain(&refusal);
        if !signatures.problems.is_empty() {
            problem = format!("{problem} (not used: {})", signatures.problems.join("; "));
        }
        Err(Error::signature(&self.source, problem))
    }

    /// What the signatures show, or the refusal of the first requirement that is not met. Errors: the daemon ends.
    async fn judge(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        signatures: &mut Vec<Signature>,
    ) -> Result<Result<Facts, Refusal>, Error> {
        // The semaphore is never closed, so this cannot fail.
        let permit = VERIFIERS.acquire().await.ok();
        let (signers, taken) = (Arc::clone(&self.signers), std::mem::take(signatures));
        let (image, digests) = (image.clone(), digests.to_vec());
        let verify = move || {
            let judged = judge(&signers, &image, &digests, &taken);
            drop(permit);
            Ok((judged, taken))
        };
        let (judged, given_back) = blocking("verifying signatures", verify).await?;
        *signatures = given_back;
        Ok(judged)
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

/// What the signatures show. Errors: the refusal of the first requirement that is not met.
fn judge(
    signers: &[Signer],
    image: &ImageRef,
    digests: &[Digest],
    signatures: &[Signature],
) -> Result<Facts, Refusal> {
    let mut facts = Facts::new();
    for signer in signers {
        facts.extend(signer.judge(image, digests, signatures)?);
    }
    Ok(facts)
}

impl Signer {
    /// One of the [`Facts`]: one of `keys` has signed. It stays the same from build to build; earlier ones have kept facts of
    /// all keys of a requirement together.
    fn fact<'k>(&self, image: &ImageRef, keys: impl IntoIterator<Item = &'k PublicKey>) -> Digest {
        let mut keys: Vec<Digest> = keys.into_iter().map(PublicKey::digest).collect();
        keys.sort();
        let keys: Vec<&str> = keys.iter().map(Digest::as_str).collect();
        let text = serde_json::json!([image.to_string(), keys, self.identity]);
        Digest::of(text.to_string().as_bytes())
    }

    /// A fact for each key that has signed the image. Errors: none has; how near the nearest signature came.
    fn judge(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<Facts, Refusal> {
        let mut facts = Facts::new();
        let mut nearest = match signatures.len() {
            0 => Refusal::None,
            count => Refusal::OtherKey(count),
        };
        let pairs = signatures
            .iter()
            .flat_map(|signature| self.keys.iter().map(move |key| (signature, key)));
        for (signature, key) in pairs {
            let judged = match signature.claims(key) {
                None => continue,
                Some(Err(problem)) => Err(Refusal::Unreadable(problem)),
                Some(Ok(claims)) => self.judge_claims(image, digests, &claims),
            };
            match judged {
                Ok(()) => drop(facts.insert(self.fact(image, [key]))),
                Err(refusal) => nearest = nearest.max(refusal),
            }
        }
        match facts.is_empty() {
            true => Err(nearest),
            false => Ok(facts),
        }
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
