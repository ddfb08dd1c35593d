//! What a Linux payload may not do whatever its filter allows.

use serde::{Deserialize, Serialize};

/// System calls that the node refuses in front of a payload's own filter, also where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Floor {
    /// It makes no user namespaces: what one has the kernel do, and how much of it, no limit of its cgroup holds.
    #[serde(default)]
    pub no_user_namespaces: bool,
    /// It has only sockets that the rules of its pod's network see.
    #[serde(default)]
    pub only_governed_sockets: bool,
}

impl Floor {
    /// Whether it refuses nothing.
    pub fn is_open(self) -> bool {
        self == Self::default()
    }
}
