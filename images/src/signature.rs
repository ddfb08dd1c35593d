//! Signatures: which images the node's policy accepts, and whether their signatures, made by cosign, say so.
//!
//! ```text
//! policy.json -> rules for an image -> fetch signatures -> payload (verified by key) -> claims: digest, name (identity)
//! ```
//! Called by: the pull, before its first request and between manifest and blobs; `coracle check`, for the policy.
//! Invariants: everything is verified offline, with public keys of the node's administrator; nothing that a registry sends is
//! believed before a key has verified it; a policy that cannot be read refuses all that it is for.
//! Not here: other content of an image; who may pull; certificates and transparency logs.

mod fetch;
mod files;
mod identity;
mod key;
mod payload;
mod policy;
mod rules;
mod stored;

pub use rules::check_signature_policy;
pub(crate) use rules::{Demands, for_image};
