//! The part of the configuration that effects need: what holds as long as the daemon runs, and what a reload changes.
//!
//! Made by: the shim, from its checked configuration. Read by: effects, each of which takes what holds when it begins.
//! Must not know: keys of the configuration file, except to name them in refusals.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_lifecycle::{Error, HandlerSettings, Kind, PodRecord};
use coracle_spec::egress::{Cidr, Internal};
use coracle_spec::live::Live;

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
    /// Most pods at a time.
    pub max_pods: u32,
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
    /// Name servers of pods that an operator's egress list holds; those of the node if empty.
    pub name_servers: Vec<IpAddr>,
    /// Which addresses a name in an egress list leads to only below certain domains.
    pub internal: Internal,
    /// Prefixes of the site's own NAT64 translators: what is behind them is denied and internal as it is without them.
    pub nat64_prefixes: Vec<Cidr>,
    /// Missing host paths of mounts are created.
    pub create_host_paths: bool,
    /// How devices are found and given.
    pub devices: DeviceSettings,
    /// The handlers by each of their names.
    pub handlers: BTreeMap<String, HandlerSettings>,
}

/// How a container's devices are found and given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Directories of CDI specifications; the later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Programs of the node that specifications may have run inside of containers.
    pub cdi_hooks: Vec<PathBuf>,
    /// Programs of the node that specifications may have run on the node.
    pub cdi_node_hooks: Vec<PathBuf>,
    /// Devices belong to the user and group that a container's security context names.
    pub owned_by_user: bool,
}

impl LiveConfig {
    /// How a pod's handler runs containers: as configured, or as it was when the pod was created if it was removed from the
    /// configuration since. Errors: WrongPhase for a pod of a build that did not record that.
    pub(super) fn handler_of(&self, pod: &PodRecord) -> Result<HandlerSettings, Error> {
        let name = pod.config.shown_handler();
        let recorded = || pod.handler_settings.as_deref();
        match self.handlers.get(name).or_else(recorded) {
            Some(settings) => Ok(settings.clone()),
            // The configuration always has the built-in ones.
            None if pod.config.handler_name.is_empty() => Ok(HandlerSettings::default()),
            None => Err(Error::new(
                Kind::WrongPhase,
                format!(
                    "sandbox {} has runtime handler {name:?}, which the configuration has not any more, and its settings were not recorded: configure handlers.{name} again, or create the pod anew",
                    pod.id
                ),
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const POD: &str = include_str!("../../lifecycle/fuzz/pod-record/p-818");

    #[test]
    fn a_handler_that_was_removed_runs_containers_as_it_did_or_not_at_all() {
        let settings = HandlerSettings {
            name: "tight".to_owned(),
            spawn: coracle_spec::Spawn::Exec,
            ..HandlerSettings::default()
        };
        let mut live = LiveConfig::default();
        let mut pod: PodRecord = serde_json::from_str(POD).unwrap();
        std::sync::Arc::make_mut(&mut pod.config).handler_name = "tight".to_owned();
        let refused = live.handler_of(&pod).unwrap_err();
        assert_eq!(refused.kind(), Kind::WrongPhase);
        assert!(refused.to_string().contains("handlers.tight"), "{refused}");
        pod.handler_settings = Some(Box::new(settings.clone()));
        assert_eq!(live.handler_of(&pod).unwrap(), settings);
        // What is configured now decides.
        live.handlers
            .insert("tight".to_owned(), HandlerSettings::default());
        assert_eq!(live.handler_of(&pod).unwrap(), HandlerSettings::default());
    }
}
