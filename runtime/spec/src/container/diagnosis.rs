//! What a Wasm container writes about its guests, for whoever looks for a bug: core dumps and profiles.
//!
//! Part of [`super::WasmSpec`], decided when the pod is created. Invariant: each directory is an absolute path inside the
//! container without `..`, and the container process opens it as the guest could. Not here: what the files hold.

use serde::{Deserialize, Serialize};

/// The directories for the files of a container; nothing is written without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Diagnosis {
    /// For a core dump of each trap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_dump: Option<String>,
    /// For a profile of where guests spend their time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_profile: Option<String>,
}

impl Diagnosis {
    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
