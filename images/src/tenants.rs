//! Whose an image or a piece of work is, as far as the store can know.
//!
//! Made by: the pull, for its image's record, for its turn ([`crate::shares`]) and for lookups of names. Read by:
//! [`crate::room`] and [`crate::identity`]. Pure.
//! Invariant: a pod's author chooses the names of registries freely, but not the namespace of the pod; so a namespace
//! counts wherever it is known. Not here: how much anybody may have.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The longest name of a namespace that is kept: as long as Kubernetes allows a name to be. Characters.
const MAX_NAMESPACE: usize = 253;

/// What the operator is called, which no namespace can be.
pub(crate) const OPERATOR: &str = "the operator";

/// Whoever has brought an image to the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tenant {
    /// A pod of this namespace needed it.
    Namespace(String),
    /// It is from a registry of this zone; nobody has said for whom.
    Zone(String),
    /// The operator has imported it.
    Operator,
}

impl Tenant {
    /// Of a pull from `registry` for `namespace`, which is empty if it is not known.
    pub(crate) fn of_pull(namespace: &str, registry: &str) -> Self {
        match namespace {
            "" => Self::Zone(zone_of(registry)),
            known => Self::Namespace(known.chars().take(MAX_NAMESPACE).collect()),
        }
    }

    /// For messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Namespace(name) => format!("namespace {name}"),
            Self::Zone(zone) => format!("registries of {zone}"),
            Self::Operator => OPERATOR.to_owned(),
        }
    }
}

/// The last two labels of a host's name, lower case, or its whole address; without the port.
pub(crate) fn zone_of(registry: &str) -> String {
    let without_port = || match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = match registry.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None if registry.parse::<IpAddr>().is_ok() => registry,
        None => without_port(),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    let start = host.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    host[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_of_a_registry_is_its_last_two_labels_or_its_address() {
        for (registry, zone) in [
            ("a1.EVIL.example", "evil.example"),
            ("x.y.evil.example.:5000", "evil.example"),
            ("evil.example", "evil.example"),
            ("localhost:5000", "localhost"),
            ("10.0.0.1:5000", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]:5000", "::1"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(zone_of(registry), zone);
        }
    }

    #[test]
    fn a_known_namespace_counts_and_else_the_zone() {
        let pull = |namespace: &str| Tenant::of_pull(namespace, "r1.evil.example:1");
        assert_eq!(pull(""), Tenant::Zone("evil.example".to_owned()));
        assert_eq!(pull("team"), Tenant::Namespace("team".to_owned()));
        assert_eq!(pull(&"x".repeat(9999)).shown().len(), 253 + 10);
    }
}
