//! The name that a signature gives its image, and which names a policy accepts.
//!
//! Called by: [`super::rules`]. Pure. Source: containers-policy.json(5), `signedIdentity`.
//! Invariant: names are compared in their completed form; a name that cannot be parsed matches nothing.
//! Not here: which requirement applies, who signed.

use serde::{Deserialize, Serialize};

use crate::reference::{ImageRef, Target};

/// Which names in signatures a requirement accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    deny_unknown_fields,
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(super) enum SignedIdentity {
    /// The image's own, tag included.
    MatchExact {},
    /// The image's own; any of its repository for an image that is pulled by digest.
    MatchRepoDigestOrExact {},
    /// Any of the image's repository.
    MatchRepository {},
    /// This one.
    ExactReference { docker_reference: String },
    /// Any of this repository.
    ExactRepository { docker_repository: String },
    /// As `matchRepoDigestOrExact`, after a change of the beginning of the image's name.
    RemapIdentity {
        prefix: String,
        signed_prefix: String,
    },
    /// Any, or none: the digest alone. An extension of ours, for signatures that name no repository.
    MatchDigest {},
}

/// A name as written: a repository, and perhaps a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    /// Registry and repository, completed.
    name: String,
    /// `:tag` or `@digest`; `None` if neither was written.
    target: Option<Target>,
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let reference: ImageRef = text.parse().ok()?;
        let target = ImageRef::has_target(text).then(|| reference.target().clone());
        Some(Self {
            name: reference.name(),
            target,
        })
    }

    fn of(image: &ImageRef) -> Self {
        Self {
            name: image.name(),
            target: Some(image.target().clone()),
        }
    }

    /// Whether both are the same name, with tag or digest.
    fn is_exactly(&self, other: &Self) -> bool {
        self.target.is_some() && self == other
    }

    fn matches_repo_digest_or_exact(&self, signed: &Self) -> bool {
        match self.target {
            Some(Target::Digest(_)) => self.name == signed.name,
            _ => self.is_exactly(signed),
        }
    }
}

impl Default for SignedIdentity {
    fn default() -> Self {
        Self::MatchRepoDigestOrExact {}
    }
}

impl SignedIdentity {
    /// Errors: it can never match anything, as the rest of a sentence.
    pub(super) fn validate(&self) -> Result<(), String> {
        let bad = |name: &str, wanted: &str| Err(format!("{name:?} is not {wanted}"));
        match self {
            Self::ExactReference { docker_reference } => match Named::parse(docker_reference) {
                Some(named) if named.target.is_some() => Ok(()),
                _ => bad(docker_reference, "a reference with a tag or a digest"),
            },
            Self::ExactRepository { docker_repository } => match Named::parse(docker_repository) {
                Some(_) => Ok(()),
                None => bad(docker_repository, "a repository"),
            },
            Self::RemapIdentity {
                prefix,
                signed_prefix,
            } => {
                for prefix in [prefix, signed_prefix] {
                    // With something after it, it must be the name of a repository.
                    let as_name = format!("{prefix}/a/a");
                    let is_whole = as_name
                        .parse::<ImageRef>()
                        .is_ok_and(|image| image.name() == as_name);
                    if !is_whole {
                        return bad(prefix, "a host, or the beginning of a completed repository");
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether `signed`, the name in a signature, is one for `image`.
    pub(super) fn accepts(&self, image: &ImageRef, signed: Option<&str>) -> bool {
        if let Self::MatchDigest {} = self {
            return true;
        }
        let Some(signed) = signed.and_then(Named::parse) else {
            return false;
        };
        let own = Named::of(image);
        match self {
            Self::MatchDigest {} => true,
            Self::MatchExact {} => own.is_exactly(&signed),
            Self::MatchRepoDigestOrExact {} => own.matches_repo_digest_or_exact(&signed),
            Self::MatchRepository {} => own.name == signed.name,
            Self::ExactReference { docker_reference } => {
                Named::parse(docker_reference).is_some_and(|named| named.is_exactly(&signed))
            }
            Self::ExactRepository { docker_repository } => {
                Named::parse(docker_repository).is_some_and(|named| named.name == signed.name)
            }
            Self::RemapIdentity {
                prefix,
                signed_prefix,
            } => {
                let own = match own.name.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => Named {
                        name: format!("{signed_prefix}{rest}"),
                        ..own
                    },
                    _ => own,
                };
                own.matches_repo_digest_or_exact(&signed)
            }
        }
    }

    /// What could be done about a signature that names a repository alone, or nothing.
    pub(super) fn hint(&self, signed: Option<&str>) -> &'static str {
        let has_target = signed.is_some_and(ImageRef::has_target);
        match (self, signed) {
            (Self::MatchDigest {}, _) => "",
            (_, None) => {
                "; cosign 3 names no repository unless it signs with --new-bundle-format=false"
            }
            (Self::MatchExact {} | Self::MatchRepoDigestOrExact {}, Some(_)) if !has_target => {
                "; cosign names the repository alone, which signedIdentity matchRepository accepts"
            }
            _ => "",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn identity(json: &str) -> SignedIdentity {
        let identity: SignedIdentity = serde_json::from_str(json).unwrap();
        identity.validate().unwrap();
        identity
    }

    #[test]
    fn each_kind_accepts_what_containers_policy_json_says() {
        let by_digest = format!("r.io/a/b@{DIGEST}");
        let exact = r#"{"type":"matchExact"}"#;
        let usual = r#"{"type":"matchRepoDigestOrExact"}"#;
        let repository = r#"{"type":"matchRepository"}"#;
        let reference = r#"{"type":"exactReference","dockerReference":"up.io/x:2"}"#;
        let named = r#"{"type":"exactRepository","dockerRepository":"up.io/x"}"#;
        let remap = r#"{"type":"remapIdentity","prefix":"r.io/a","signedPrefix":"up.io/y"}"#;
        let hub = r#"{"type":"exactRepository","dockerRepository":"busybox"}"#;
        for (rule, image, signed, accepted) in [
            (exact, "r.io/a/b:1", "r.io/a/b:1", true),
            (exact, "r.io/a/b:1", "r.io/a/b:2", false),
            (exact, "r.io/a/b:latest", "r.io/a/b", false),
            (exact, &by_digest, "r.io/a/b:1", false),
            (exact, &by_digest, &by_digest, true),
            (usual, "r.io/a/b:1", "r.io/a/b:1", true),
            (usual, "r.io/a/b:1", "r.io/a/b", false),
            (usual, "r.io/a/b:1", &by_digest, false),
            (usual, &by_digest, "r.io/a/b:7", true),
            (usual, &by_digest, "r.io/a/b", true),
            (usual, &by_digest, "r.io/a/c", false),
            (repository, "r.io/a/b:1", "r.io/a/b", true),
            (repository, "r.io/a/b:1", "r.io/a/b:9", true),
            (repository, "r.io/a/b:1", "r.io/a", false),
            (repository, "r.io/a/b:1", "r.io/a/b/c", false),
            (
                repository,
                "busybox",
                "index.docker.io/library/busybox",
                true,
            ),
            (reference, "r.io/a/b:1", "up.io/x:2", true),
            (reference, "r.io/a/b:1", "up.io/x:3", false),
            (reference, "r.io/a/b:1", "up.io/x", false),
            (named, "r.io/a/b:1", "up.io/x:3", true),
            (named, "up.io/x:3", "r.io/a/b:1", false),
            (hub, "r.io/a/b:1", "docker.io/library/busybox:1", true),
            (remap, "r.io/a/b:1", "up.io/y/b:1", true),
            (remap, "r.io/a:1", "up.io/y:1", true),
            (remap, "r.io/ab/c:1", "up.io/yb/c:1", false),
            (remap, "r.io/ab/c:1", "r.io/ab/c:1", true),
            (remap, "r.io/a/b:1", "r.io/a/b:1", false),
            (remap, &by_digest, "up.io/y/b:1", true),
        ] {
            let found = identity(rule).accepts(&image.parse().unwrap(), Some(signed));
            assert_eq!(found, accepted, "{rule}: {image} signed as {signed}");
        }
    }

    #[test]
    fn only_match_digest_accepts_a_signature_without_a_usable_name() {
        let image: ImageRef = "r.io/a/b:1".parse().unwrap();
        for name in [
            None,
            Some(""),
            Some("r.io/a/b:"),
            Some("R.io//"),
            Some("../a"),
        ] {
            for rule in [r#"{"type":"matchRepository"}"#, r#"{"type":"matchExact"}"#] {
                assert!(!identity(rule).accepts(&image, name), "{rule}: {name:?}");
            }
            assert!(identity(r#"{"type":"matchDigest"}"#).accepts(&image, name));
        }
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        for rule in [
            r#"{"type":"matchAny"}"#,
            r#"{"type":"matchExact","more":1}"#,
            r#"{"type":"exactReference"}"#,
            r#"{}"#,
        ] {
            assert!(
                serde_json::from_str::<SignedIdentity>(rule).is_err(),
                "{rule}"
            );
        }
        for rule in [
            r#"{"type":"exactReference","dockerReference":"up.io/x"}"#,
            r#"{"type":"exactReference","dockerReference":"up.io/x:"}"#,
            r#"{"type":"exactRepository","dockerRepository":"UP//"}"#,
            r#"{"type":"remapIdentity","prefix":"","signedPrefix":"up.io"}"#,
            r#"{"type":"remapIdentity","prefix":"busybox","signedPrefix":"up.io"}"#,
            r#"{"type":"remapIdentity","prefix":"r.io/a:1","signedPrefix":"up.io"}"#,
        ] {
            let rule: SignedIdentity = serde_json::from_str(rule).unwrap();
            assert!(rule.validate().is_err(), "{rule:?}");
        }
    }
}
