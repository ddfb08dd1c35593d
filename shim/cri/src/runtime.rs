//! The RPCs about the runtime itself: Version, Status, RuntimeConfig, UpdateRuntimeConfig.
//!
//! Called by `service`. Invariant: they answer at once, from facts that `main` gathered and from what is known of the
//! network; kubelet probes them before anything else and every five seconds after.
//! Not here: pods, images.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_proto::runtime::v1 as cri;
use tracing::info;

use super::status::Failure;
use super::{Shared, convert};

/// What Status and RuntimeConfig report; fixed while the daemon runs.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where images and records lie: the configuration's `root`.
    pub root_dir: PathBuf,
    /// Where sockets and pins lie: the configuration's `run`. Verbose Status shows it as `stateDir`.
    pub state_dir: PathBuf,
    /// Who makes cgroups; kubelet follows it.
    pub cgroup_driver: CgroupDriver,
    /// Whether pods can have user namespaces of their own.
    pub maps_users: bool,
}

/// Who makes the cgroups of pods. Source: cri-api `CgroupDriver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// We, as directories.
    Cgroupfs,
    /// systemd, as scopes.
    Systemd,
}

impl CgroupDriver {
    /// Its name as kubelet's configuration spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// Version: who we are.
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
    Ok(convert::status_reply(
        &shared.node,
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

/// UpdateRuntimeConfig: accepted and not used: the built-in network has a subnet of its own, and plugins have theirs
/// in their configuration.
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
