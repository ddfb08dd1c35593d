//! Programs of the node that a container's process runs before its payload, or the daemon beside it: the hooks of devices.
//!
//! Part of [`super::LinuxSpec`] and of plans. Invariant: the operator has listed every path; no value of a pod is in any of them.
//! Not here: which hooks may run, and running them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The hooks of a container, and where they find it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// A directory of the node in which hooks see, instead of its own files, the container's bundle.
    pub directory: PathBuf,
    /// Those for the finished root, in order (`createContainer`).
    pub create_container: Vec<Hook>,
}

/// One program. Source: the OCI runtime specification, POSIX-platform hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Its absolute path on the node.
    pub path: String,
    /// Its arguments, its own name first; without any it has its path.
    pub args: Vec<String>,
    /// Its environment, `NAME=VALUE`.
    pub env: Vec<String>,
    /// How long it may take. Seconds.
    pub timeout_s: u32,
}

/// The hooks that run outside of a container, as the node's root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHooks {
    /// Those for a container that runs, in order (`poststart`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started: Vec<Hook>,
    /// Those for one that has run and is taken apart, in order (`poststop`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<Hook>,
}

impl NodeHooks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.started.is_empty() && self.stopped.is_empty()
    }
}

impl Hooks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.create_container.is_empty()
    }
}
