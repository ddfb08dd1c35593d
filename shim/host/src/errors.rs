//! Errors of the lifecycle, made from what the host and its network report.
//!
//! Called by: the effects. Must not know: gRPC codes; the API layer turns a [`Kind`] into one.

use coracle_lifecycle::{Error, Kind};
use coracle_network::{self as network, cni};

/// A request that cannot be met as it is written.
pub(super) fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

/// A failure of the built-in network or of a namespace, during `what`.
pub(super) fn network_error(what: String, error: network::Error) -> Error {
    let kind = match error {
        network::Error::Exhausted { .. } | network::Error::PortTaken { .. } => Kind::Exhausted,
        network::Error::PortFamily { .. } => Kind::Invalid,
        _ => Kind::Io,
    };
    Error::because(kind, what, error)
}

/// A failure of plugins, during `what`.
pub(super) fn cni_error(what: String, error: cni::Error) -> Error {
    let kind = match error {
        cni::Error::InvalidName { .. } => Kind::Invalid,
        _ => Kind::Io,
    };
    Error::because(kind, what, error)
}
