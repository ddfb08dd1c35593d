//! The value of an `egress` setting as written: `"any"`, `"none"`, or a list of targets.
//!
//! Called by serde. Invariant: a value that is printed is read back as the same value.
//! Must not know: whether a target is valid; `handlers` checks that.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
