//! Policy files: `policy.json` as containers-policy.json(5) describes it, read strictly.
//!
//! Called by: [`super::rules`] at each pull, and `coracle check`. Blocks on the files.
//! Invariants: a file with anything unknown, repeated or contradictory is refused as a whole; only the most specific scope
//! counts; what another tool could verify and this node cannot (GPG keys, certificates, transparency logs) accepts nothing.
//! Not here: verifying signatures.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::identity::SignedIdentity;
use super::key::PublicKey;
use crate::reference::ImageRef;
use crate::regular_file::read_trusted;

/// Largest policy file. Bytes.
const MAX_POLICY_BYTES: u64 = 1 << 20;
/// Largest file of a key. Bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Why a scope is refused that no image is in: it would demand nothing, and nobody would notice.
const NO_IMAGES: &str = "no image is in it: scopes are names without https://, with the host in \
                         lower case, no / at the end, and docker.io/library/ before a name without a host";

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Requirement>>>,
}

/// One of the requirements that an image must meet, all of them.
#[derive(Debug, Deserialize)]
#[serde(
    tag = "type",
    deny_unknown_fields,
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(super) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    /// GPG signatures, which this node cannot verify. Its fields are not looked at.
    SignedBy {
        #[serde(rename = "keyType")]
        _key_type: Option<IgnoredAny>,
        #[serde(rename = "keyPath")]
        _key_path: Option<IgnoredAny>,
        #[serde(rename = "keyPaths")]
        _key_paths: Option<IgnoredAny>,
        #[serde(rename = "keyData")]
        _key_data: Option<IgnoredAny>,
        #[serde(rename = "signedIdentity")]
        _signed_identity: Option<IgnoredAny>,
    },
    SigstoreSigned(Box<SigstoreSigned>),
}

/// Signatures by cosign.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SigstoreSigned {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) signed_identity: SignedIdentity,
}

impl Policy {
    /// Reads the file. `None` if it is not there. Errors: what is wrong, as the rest of a sentence.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let Some(bytes) = read_trusted(path, MAX_POLICY_BYTES)? else {
            return Ok(None);
        };
        Self::parse(&bytes).map(Some)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let policy: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("it is no signature policy: {error}"))?;
        for (scope, requirements) in policy.all() {
            let wrong = |problem: String| format!("its scope {scope:?}: {problem}");
            if requirements.is_empty() {
                return Err(wrong("it has no requirements".to_owned()));
            }
            for requirement in requirements {
                requirement.validate().map_err(wrong)?;
            }
        }
        let docker = policy.docker().into_iter();
        let mut keys = docker.flat_map(|scopes| scopes.0.keys());
        let unused = keys.find(|scope| !has_images(scope)).cloned();
        if let Some(scope) = unused {
            return Err(format!("its scope {scope:?}: {NO_IMAGES}"));
        }
        Ok(policy)
    }

    /// Every scope with its requirements; `default`, and those of registries.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &[Requirement])> {
        let docker = self.docker().into_iter().flat_map(|scopes| &scopes.0);
        let docker = docker.map(|(scope, requirements)| (scope.as_str(), requirements.as_slice()));
        std::iter::once(("default", self.default.as_slice())).chain(docker)
    }

    fn docker(&self) -> Option<&Unique<Vec<Requirement>>> {
        self.transports.0.get("docker")
    }

    /// The requirements for `image`, with their scope.
    pub(super) fn requirements(&self, image: &ImageRef) -> (&str, &[Requirement]) {
        let found = self.docker().and_then(|docker| {
            let mut scopes = scopes(image).into_iter();
            scopes.find_map(|scope| docker.0.get_key_value(&scope))
        });
        match found {
            Some((scope, requirements)) => (scope, requirements),
            None => ("default", &self.default),
        }
    }
}

impl Requirement {
    fn validate(&self) -> Result<(), String> {
        match self {
            Self::SigstoreSigned(signed) => signed.validate(),
            Self::InsecureAcceptAnything {} | Self::Reject {} | Self::SignedBy { .. } => Ok(()),
        }
    }

    /// What this node would need to verify it, and has not.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        match self {
            Self::SignedBy { .. } => Some("signedBy: signatures by GPG keys are not supported"),
            Self::SigstoreSigned(signed) => signed.unsupported(),
            Self::InsecureAcceptAnything {} | Self::Reject {} => None,
        }
    }
}

impl SigstoreSigned {
    fn validate(&self) -> Result<(), String> {
        let given = [
            self.key_path.is_some(),
            self.key_paths.is_some(),
            self.key_data.is_some(),
            self.key_datas.is_some(),
            self.fulcio.is_some(),
            self.pki.is_some(),
        ];
        if given.into_iter().filter(|is_given| *is_given).count() != 1 {
            let names = "keyPath, keyPaths, keyData, keyDatas, fulcio and pki";
            return Err(format!("sigstoreSigned needs exactly one of {names}"));
        }
        let paths = self.key_path.iter().chain(self.key_paths.iter().flatten());
        for path in paths {
            if !path.is_absolute() {
                return Err(format!("the key's path {path:?} is not absolute"));
            }
        }
        self.signed_identity.validate()
    }

    fn unsupported(&self) -> Option<&'static str> {
        let has_log = [
            &self.rekor_public_key_path,
            &self.rekor_public_key_paths,
            &self.rekor_public_key_data,
            &self.rekor_public_key_datas,
        ];
        if self.fulcio.is_some() || self.pki.is_some() {
            return Some("sigstoreSigned with certificates (fulcio, pki) is not supported");
        }
        if has_log.into_iter().any(Option::is_some) {
            return Some(
                "sigstoreSigned with a transparency log (rekorPublicKey) is not supported",
            );
        }
        None
    }

    /// Reads its keys, of which any may have signed. Blocking. Errors: one cannot be used.
    pub(super) fn keys(&self) -> Result<Vec<PublicKey>, String> {
        let paths = self.key_path.iter().chain(self.key_paths.iter().flatten());
        let data = self.key_data.iter().chain(self.key_datas.iter().flatten());
        let from_path = |path: &PathBuf| {
            let wrong = |problem: String| format!("the key {}: {problem}", path.display());
            let pem = read_trusted(path, MAX_KEY_BYTES).map_err(wrong)?;
            let pem = pem.ok_or_else(|| wrong("it is not there".to_owned()))?;
            PublicKey::from_pem(&pem).map_err(wrong)
        };
        let from_data = |text: &String| {
            let pem = STANDARD
                .decode(text)
                .map_err(|_| "it is not base64".to_owned());
            let key = pem.and_then(|pem| PublicKey::from_pem(&pem));
            key.map_err(|problem| format!("the key in keyData: {problem}"))
        };
        let keys: Vec<PublicKey> = paths
            .map(from_path)
            .chain(data.map(from_data))
            .collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err("sigstoreSigned has an empty list of keys".to_owned());
        }
        Ok(keys)
    }
}

/// Whether any image can be in a scope of registries.
fn has_images(scope: &str) -> bool {
    let images = match scope.strip_prefix("*.") {
        Some(domain) => [format!("x.{domain}/x"), String::new()],
        None => [scope.to_owned(), format!("{scope}/x")],
    };
    let mut images = images
        .iter()
        .filter_map(|name| name.parse::<ImageRef>().ok());
    scope.is_empty() || images.any(|image| scopes(&image).iter().any(|one| one == scope))
}

/// The scopes that an image is in, most specific first: itself, its repository, what is above, its host, wildcards of its
/// domain, and all of them. Other spellings of the same host are in the same scopes.
fn scopes(image: &ImageRef) -> Vec<String> {
    let (domain, hosts) = hosts(image.registry());
    let whole = image.to_string();
    let whole = whole.strip_prefix(image.registry()).unwrap_or_default();
    let mut scopes: Vec<String> = hosts.iter().map(|host| format!("{host}{whole}")).collect();
    let mut path = format!("/{}", image.repository());
    loop {
        scopes.extend(hosts.iter().map(|host| format!("{host}{path}")));
        match path.rfind('/') {
            Some(end) => path.truncate(end),
            None => break,
        }
    }
    let mut domain = domain.as_str();
    while let Some((_, above)) = domain.split_once('.') {
        scopes.push(format!("*.{above}"));
        domain = above;
    }
    scopes.push(String::new());
    scopes
}

/// The domain of a registry, empty if it has none, and how its host is written in scopes: in lower case, with its port, and
/// without one that is the default; a host without a port also with that of https.
fn hosts(registry: &str) -> (String, Vec<String>) {
    let registry = registry.to_ascii_lowercase();
    let (host, port) = match registry.rsplit_once(':') {
        // A colon inside the brackets of an IPv6 address begins no port.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()),
        _ => (registry.as_str(), None),
    };
    let address = host.strip_prefix('[').and_then(|rest| {
        let address = rest.strip_suffix(']')?;
        address.parse::<Ipv6Addr>().ok()
    });
    let host = match (address, host) {
        (Some(address), _) => format!("[{address}]"),
        (None, "index.docker.io") => "docker.io".to_owned(),
        (None, host) => host.to_owned(),
    };
    let hosts = match port {
        None => vec![host.clone(), format!("{host}:443")],
        Some(port @ (80 | 443)) => vec![format!("{host}:{port}"), host.clone()],
        Some(port) => vec![format!("{host}:{port}")],
    };
    let domain = if address.is_some() {
        String::new()
    } else {
        host
    };
    (domain, hosts)
}

/// A map whose keys must not be repeated.
#[derive(Debug)]
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("{key:?} is there twice")));
                    }
                }
                Ok(Unique(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests;
