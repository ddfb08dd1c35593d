//! Programs of the node that a container's process runs before its payload: the hooks of devices.
//!
//! Part of [`super::LinuxSpec`]. Invariant: the operator has listed every path; no value of a pod is in any of them.
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

impl Hooks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.create_container.is_empty()
    }
}
