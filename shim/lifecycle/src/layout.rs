//! The paths of records below the root directory.
//!
//! Used by: drivers and recovery (records), the host (files beside them). Pure.
//! Invariant: the paths never change between builds, because a later daemon looks for them. Must not know: file
//! contents.

use std::path::PathBuf;

use coracle_spec::id::{ContainerId, PodId};

/// The directories of records; survives a reboot.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, the configuration's `root`.
    pub fn new(root: PathBuf) -> Layout {
        Layout { root }
    }

    /// All pods' records.
    pub fn pods_directory(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// One pod's record, containers and exit records.
    pub fn pod_directory(&self, pod: &PodId) -> PathBuf {
        self.pods_directory().join(pod.as_str())
    }

    /// The records of a pod's containers.
    pub fn containers_directory(&self, pod: &PodId) -> PathBuf {
        self.pod_directory(pod).join("containers")
    }

    /// One container's record and writable layer.
    pub fn container_directory(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.containers_directory(pod).join(container.as_str())
    }

    /// Where a pod's keeper leaves exit records.
    pub fn exits_directory(&self, pod: &PodId) -> PathBuf {
        self.pod_directory(pod).join("exits")
    }

    /// The directories for broken records, which an operator may look at. The second one, whose name is no id of a pod, is
    /// for a node whose pods are on another filesystem than the root directory: nothing is renamed from one to the other.
    pub fn quarantines(&self) -> [PathBuf; 2] {
        [&self.root, &self.pods_directory()].map(|parent| parent.join("quarantine"))
    }
}
