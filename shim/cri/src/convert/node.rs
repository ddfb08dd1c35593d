//! Replies about the runtime itself: version, status, features, cgroup driver.
//!
//! Called by `runtime`. Invariant: a feature is listed only when requests that use it are carried out.
//! Must not know: where the facts come from.

use std::collections::BTreeMap;

use coracle_proto::runtime::v1 as cri;
use serde_json::json;

use crate::node::{CgroupDriver, Node};
use crate::policy::Policies;

/// The version of the kubelet's own runtime interface, the only value that it accepts.
const KUBELET_API_VERSION: &str = "0.1.0";

/// The reply of Version.
pub(crate) fn version_reply() -> cri::VersionResponse {
    cri::VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: "coracle".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// The reply of Status; `network_problem` is why pods get no network; `info["config"]` is set only for a verbose
/// request.
pub(crate) fn status_reply(
    node: &Node,
    handlers: &Policies,
    network_problem: Option<&str>,
    request: &cri::StatusRequest,
) -> cri::StatusResponse {
    let runtime = condition("RuntimeReady", None);
    let network = condition("NetworkReady", network_problem);
    let info = match request.verbose {
        true => BTreeMap::from([("config".to_owned(), config(node, handlers))]),
        false => BTreeMap::new(),
    };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![runtime, network],
        }),
        info,
        runtime_handlers: handlers
            .names()
            .map(|(name, _)| handler(node, name))
            .collect(),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    }
}

/// A condition: true, or false because of `problem`, which users see.
fn condition(name: &str, problem: Option<&str>) -> cri::RuntimeCondition {
    cri::RuntimeCondition {
        r#type: name.to_owned(),
        status: problem.is_none(),
        // Other runtimes use this reason; node problem detectors match it.
        reason: problem.map_or("", |_| "NetworkPluginNotReady").to_owned(),
        message: problem.unwrap_or_default().to_owned(),
    }
}

fn config(node: &Node, handlers: &Policies) -> String {
    let handlers: Vec<_> = handlers.names().map(|(name, _)| name).collect();
    json!({
        "stateDir": node.state_dir,
        "rootDir": node.root_dir,
        "cgroupDriver": node.cgroup_driver.name(),
        "handlers": handlers,
    })
    .to_string()
}

fn handler(node: &Node, name: &str) -> cri::RuntimeHandler {
    let features = cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: true,
        user_namespaces: node.maps_users,
    };
    cri::RuntimeHandler {
        name: name.to_owned(),
        features: Some(features),
    }
}

/// The reply of RuntimeConfig. The driver is always set: 0, the default of an empty reply, means systemd.
pub(crate) fn runtime_config_reply(driver: CgroupDriver) -> cri::RuntimeConfigResponse {
    let driver = match driver {
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration {
        cgroup_driver: driver as i32,
    };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::policy::tests::usual;

    fn node() -> Node {
        Node {
            root_dir: "/var/lib/coracle".into(),
            layers_dir: "/var/lib/coracle".into(),
            splits_images: false,
            state_dir: "/run/coracle".into(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            maps_users: true,
        }
    }

    #[test]
    fn version_is_the_one_that_the_kubelet_accepts() {
        let reply = version_reply();
        assert_eq!(
            (reply.version.as_str(), reply.runtime_api_version.as_str()),
            ("0.1.0", "v1")
        );
        assert_eq!(reply.runtime_name, "coracle");
        assert_eq!(
            reply
                .runtime_version
                .split('.')
                .filter(|part| part.parse::<u32>().is_ok())
                .count(),
            3
        );
    }

    #[test]
    fn status_lists_both_conditions_and_every_handler() {
        let reply = status_reply(
            &node(),
            &usual(),
            None,
            &cri::StatusRequest { verbose: false },
        );
        let conditions = reply.status.unwrap().conditions;
        let ready: Vec<_> = conditions
            .iter()
            .map(|c| (c.r#type.as_str(), c.status))
            .collect();
        assert_eq!(ready, [("RuntimeReady", true), ("NetworkReady", true)]);
        let handlers: Vec<_> = reply
            .runtime_handlers
            .iter()
            .map(|h| h.name.as_str())
            .collect();
        assert_eq!(handlers, ["", "coracle", "coracle-wasm", "coracle-strict"]);
        assert!(reply.info.is_empty());
        let features = reply.features.unwrap();
        assert!(features.supplemental_groups_policy && features.mount_options);
        assert!(!features.user_namespaces_host_network);
        let of = |name: &str| {
            let mut handlers = reply.runtime_handlers.iter();
            handlers.find(|h| h.name == name).unwrap().features.unwrap()
        };
        assert!(
            of("").recursive_read_only_mounts && of("coracle-strict").recursive_read_only_mounts
        );
        for name in ["coracle", "coracle-wasm", "coracle-strict"] {
            assert!(of(name).user_namespaces, "{name}");
        }
    }

    #[test]
    fn user_namespaces_are_offered_only_where_the_node_has_them() {
        let node = Node {
            maps_users: false,
            ..node()
        };
        let reply = status_reply(
            &node,
            &usual(),
            None,
            &cri::StatusRequest { verbose: false },
        );
        let features = reply.runtime_handlers.iter().map(|h| h.features.unwrap());
        assert!(
            features
                .into_iter()
                .all(|features| !features.user_namespaces)
        );
    }

    #[test]
    fn a_network_problem_is_shown_to_users() {
        let reply = status_reply(
            &node(),
            &usual(),
            Some("no network configuration in /etc/cni/net.d"),
            &cri::StatusRequest { verbose: true },
        );
        let network = reply.status.unwrap().conditions.remove(1);
        assert_eq!(
            (network.status, network.reason.as_str()),
            (false, "NetworkPluginNotReady")
        );
        assert_eq!(
            network.message,
            "no network configuration in /etc/cni/net.d"
        );
        let config: serde_json::Value = serde_json::from_str(&reply.info["config"]).unwrap();
        assert_eq!(config["stateDir"], "/run/coracle");
    }

    #[test]
    fn the_cgroup_driver_is_always_set() {
        let linux = runtime_config_reply(CgroupDriver::Cgroupfs).linux.unwrap();
        assert_eq!(linux.cgroup_driver, 1);
        let linux = runtime_config_reply(CgroupDriver::Systemd).linux.unwrap();
        assert_eq!(linux.cgroup_driver, 0);
    }
}
