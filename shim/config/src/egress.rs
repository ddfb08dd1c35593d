//! The value of an `egress` setting as written: `"any"`, `"none"`, or a list of targets; and what is internal for them.
//!
//! Called by serde, and by [`super::check`]. Invariant: a value that is printed is read back as the same value.
//! Must not know: whether a target is valid; `handlers` checks that.

use std::fmt;

use coracle_spec::egress::{Cidr, Form, Internal, domain};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::values::Invalid;

/// What is internal. Errors: text that is no domain or no network.
pub(super) fn internal(domains: &[String], networks: &[String]) -> Result<Internal, Invalid> {
    let refused = |key: &'static str, text: &str, why: String| Invalid {
        key: key.into(),
        why: format!("has {text:?}, which {why}"),
    };
    let domains = domains
        .iter()
        .map(|text| domain(text).map_err(|why| refused("network.internal_domains", text, why)));
    let networks = networks.iter().map(|text| {
        let network = text.parse();
        network.map_err(|why| refused("network.internal_networks", text, why))
    });
    Ok(Internal {
        domains: domains.collect::<Result<_, _>>()?,
        networks: networks.collect::<Result<_, _>>()?,
    })
}

/// The prefixes of NAT64 translators. Errors: text that is none.
pub(super) fn nat64_prefixes(prefixes: &[String]) -> Result<Vec<Cidr>, Invalid> {
    let refused = |text: &str, why: String| Invalid {
        key: "network.nat64_prefixes".into(),
        why: format!("has {text:?}, which {why}"),
    };
    let prefixes = prefixes.iter().map(|text| {
        let prefix: Cidr = text.parse().map_err(|why| refused(text, why))?;
        match Form::of_translator(prefix) {
            Some(_) => Ok(prefix),
            None => {
                let why = "must be an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052)";
                Err(refused(text, why.to_owned()))
            }
        }
    });
    prefixes.collect()
}

/// The destinations that pods may reach, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressFile {
    /// `"any"`: all.
    Any,
    /// `"none"`: none, and no sockets.
    None,
    /// `["TARGET", ...]`.
    Listed(Vec<String>),
}

impl Serialize for EgressFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::None => serializer.serialize_str("none"),
            Self::Listed(targets) => targets.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for EgressFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = EgressFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"any\", \"none\" or a list of targets")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EgressFile, E> {
        match text {
            "any" => Ok(EgressFile::Any),
            "none" => Ok(EgressFile::None),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut targets: A) -> Result<EgressFile, A::Error> {
        let mut listed = Vec::new();
        while let Some(target) = targets.next_element()? {
            listed.push(target);
        }
        Ok(EgressFile::Listed(listed))
    }
}
