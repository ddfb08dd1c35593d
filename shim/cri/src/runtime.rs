//! The RPCs about the runtime itself: Version, Status, RuntimeConfig, UpdateRuntimeConfig.
//!
//! Called by `service`. Invariant: they answer at once, from facts that `main` collected and from the state of the
//! network; the kubelet calls them before anything else and then every five seconds.
//! Must not know: pods, images.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_proto::runtime::v1 as cri;
use tracing::info;

use super::status::Failure;
use super::{Shared, calls, convert};

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

/// Version: name and version of the runtime.
pub(super) async fn version(
    _: Arc<Shared>,
    _: cri::VersionRequest,
) -> Result<cri::VersionResponse, Failure> {
    Ok(convert::version_reply())
}

/// Status: whether pods can be run.
pub(super) async fn status(
    shared: Arc<Shared>,
    request: cri::StatusRequest,
) -> Result<cri::StatusResponse, Failure> {
    let problem = shared.pods.network_problem().await;
    calls::network(problem.is_none());
    Ok(convert::status_reply(
        &shared.node,
        &shared.policies.get(),
        problem.as_deref(),
        &request,
    ))
}

/// RuntimeConfig: the cgroup driver.
pub(super) async fn config(
    shared: Arc<Shared>,
    _: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Failure> {
    Ok(convert::runtime_config_reply(shared.node.cgroup_driver))
}

/// UpdateRuntimeConfig: accepted and ignored. The built-in network has a subnet of its own, and plugins have theirs in
/// their configuration.
pub(super) async fn update_config(
    _: Arc<Shared>,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Failure> {
    let pod_cidr = convert::runtime_config(&request)?;
    info!(
        pod_cidr,
        "kubelet's pod CIDR is not used; the configured subnet is"
    );
    Ok(cri::UpdateRuntimeConfigResponse {})
}
