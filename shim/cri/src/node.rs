//! What the RPCs about the runtime say of the node.
//!
//! Made by: whoever starts the daemon. Read by: `runtime`, and its replies. Must not know: messages.

use std::path::PathBuf;

/// The facts that Status and RuntimeConfig report; fixed while the daemon runs.
#[derive(Clone, Debug)]
pub struct Node {
    /// The directory of images and records: the configuration's `root`.
    pub root_dir: PathBuf,
    /// A directory on the file system of the containers' writable layers: `root_dir`, unless those have one of their own.
    pub layers_dir: PathBuf,
    /// Whether images are on another file system than writable layers.
    pub splits_images: bool,
    /// The directory of sockets and pins: the configuration's `run`. Verbose Status shows it as `stateDir`.
    pub state_dir: PathBuf,
    /// The cgroup driver, which the kubelet follows.
    pub cgroup_driver: CgroupDriver,
    /// Whether pods can have user namespaces of their own.
    pub maps_users: bool,
}

/// Who creates the cgroups of pods. Source: cri-api `CgroupDriver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The daemon, as directories.
    Cgroupfs,
    /// systemd, as scopes.
    Systemd,
}

impl CgroupDriver {
    /// Its name in the kubelet's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}
