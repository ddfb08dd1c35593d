//! The part of the configuration that effects need: what holds as long as the daemon runs, and what a reload changes.
//!
//! Made by: the shim, from its checked configuration. Read by: effects, each of which takes what holds when it begins.
//! Must not know: keys of the configuration file, except to name them in refusals.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_lifecycle::SandboxConfig;
use coracle_spec::live::Live;
use coracle_spec::{HttpLimits, ResourceLimit, Spawn};

use super::log::LogRoot;

/// The part of the configuration that effects need.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Records, upper layers, exit records; survives a reboot.
    pub root: PathBuf,
    /// Control sockets and pins; gone after a reboot.
    pub run: PathBuf,
    /// The directory in which network namespaces are pinned; gone after a reboot, too.
    pub pins: PathBuf,
    /// Parent cgroup of a pod for which the kubelet names none: a path or a slice.
    pub pod_parent: String,
    /// OOM killer adjustment of keepers.
    pub keeper_oom_score_adj: i32,
    /// Pods have no IPv6 at all.
    pub ipv6_off: bool,
    /// First host id of the first pod.
    pub id_base: u32,
    /// Host ids for each pod.
    pub id_count: u32,
    /// The kubelet's directory of pods' logs.
    pub log_root: LogRoot,
    /// Largest module that is read. Bytes.
    pub max_module_bytes: u64,
    /// Limit of the memory for the requests of all sandboxes and containers. Bytes.
    pub all_requests_bytes: u64,
    /// Memory for the output of all ExecSyncs. Bytes.
    pub exec_sync_output_bytes: usize,
    /// What a reload changes.
    pub live: Arc<Live<LiveConfig>>,
}

/// What a reload changes; for new pods and containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveConfig {
    /// Ports of the node, first and last of ranges, that no egress list opens, in addition to the built-in ones.
    pub denied_node_ports: Vec<(u16, u16)>,
    /// Missing host paths of mounts are created.
    pub create_host_paths: bool,
    /// The handlers by each of their names.
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// How one handler runs containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerConfig {
    /// Its name in the configuration, for messages.
    pub name: String,
    /// How a container's process is created.
    pub spawn: Spawn,
    /// The limits of its HTTP servers.
    pub http: HttpLimits,
    /// Whether components of WASI 0.3 run.
    pub wasi_p3: bool,
    /// Limits of Linux programs that replace the usual ones.
    pub rlimits: Vec<ResourceLimit>,
}

impl LiveConfig {
    /// The handler of a pod. For one that was removed from the configuration since, the built-in one that it is like.
    pub(super) fn handler_of(&self, pod: &SandboxConfig) -> HandlerConfig {
        let own = self.handlers.get(pod.shown_handler());
        let found = own.or_else(|| self.handlers.get(pod.handler.shown()));
        found.cloned().unwrap_or_default()
    }
}
