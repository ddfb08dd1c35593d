//! Builds the snapshots of pods and containers whose record cannot be used: id, reason, and whatever of the record this
//! build understands.
//!
//! Called by: recovery and drivers. Pure.
//! Invariant: a snapshot has an id and a name, so that every client can list it; nothing in it is a guess about what
//! runs.
//! Must not know: how records are read, what is done with such a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_spec::id::{ContainerId, PodId};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config::{
    Annotations, ContainerConfig, ContainerName, Dns, Handler, NamespaceMode, Namespaces, PodName,
    SandboxConfig, WasmVariant,
};
use super::record::PodRecord;
use super::view::{ContainerState, ContainerView, PodView, UNREADABLE_REASON};

/// The annotation with the reason, in the status of a sandbox; CRI has no field for it.
pub const ANNOTATION: &str = "state.coracle.dev/unreadable";
/// How many characters of an id stand in for an unknown name.
const NAME_LENGTH: usize = 13;

/// A part of a record, if the record has it in the form that this build knows.
fn part<T: DeserializeOwned>(json: Option<&Value>, name: &str) -> Option<T> {
    serde_json::from_value(json?.get(name)?.clone()).ok()
}

fn config<T: DeserializeOwned>(json: Option<&Value>) -> Option<T> {
    part(json, "config")
}

/// A sandbox whose record is unknown except for the parts in `json`. Not ready.
pub fn pod_view(id: &PodId, json: Option<&Value>, why: &str) -> PodView {
    let config = config(json).unwrap_or_else(|| sandbox_config(id));
    let view = PodView {
        id: id.clone(),
        config: Arc::new(config),
        ready: false,
        created_at: part(json, "created_at").unwrap_or(1),
        ips: Vec::new(),
        cgroup_parent: part(json, "cgroup_parent").unwrap_or_default(),
    };
    explained(view, why)
}

/// A sandbox whose record is known but which could not be recovered. Not ready.
pub fn known_pod_view(record: &PodRecord, why: &str) -> PodView {
    let view = PodView {
        ready: false,
        ..record.view()
    };
    explained(view, why)
}

fn explained(mut view: PodView, why: &str) -> PodView {
    let mut config = SandboxConfig::clone(&view.config);
    let mut annotations = config.annotations.echo();
    annotations.insert(ANNOTATION.to_owned(), why.to_owned());
    config.annotations = Annotations::new(annotations);
    view.config = Arc::new(config);
    view
}

/// A container whose record is unknown except for the parts in `json`.
pub fn container_view(
    id: &ContainerId,
    pod: &PodId,
    config: Arc<ContainerConfig>,
    why: &str,
) -> ContainerView {
    ContainerView {
        id: id.clone(),
        pod: pod.clone(),
        config,
        image_id: String::new(),
        state: ContainerState::Unknown,
        created_at: 1,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: UNREADABLE_REASON.to_owned(),
        message: why.to_owned(),
        log_path: String::new(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        image_volumes: Vec::new(),
        stop_signal: libc::SIGTERM,
        cgroup: String::new(),
    }
}

/// The config of a container, as far as it is known.
pub fn container_config(id: &ContainerId, json: Option<&Value>) -> ContainerConfig {
    config(json).unwrap_or_else(|| ContainerConfig {
        name: ContainerName {
            name: name_of(id.as_str()),
            attempt: 0,
        },
        ..ContainerConfig::default()
    })
}

fn sandbox_config(id: &PodId) -> SandboxConfig {
    SandboxConfig {
        name: PodName {
            name: name_of(id.as_str()),
            namespace: "unknown".to_owned(),
            uid: id.as_str().to_owned(),
            attempt: 0,
        },
        hostname: String::new(),
        log_directory: String::new(),
        dns: Dns::default(),
        labels: BTreeMap::new(),
        annotations: Default::default(),
        handler: Handler::Default,
        handler_name: String::new(),
        cgroup_parent: String::new(),
        namespaces: Namespaces {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
        },
        userns: None,
        sysctls: BTreeMap::new(),
        privileged: false,
        ports: Vec::new(),
        container_ports: Vec::new(),
        wasm_variant: WasmVariant::default(),
        selinux: None,
        bandwidth: Default::default(),
        ips: Vec::new(),
        mac: None,
        egress: None,
        grants: Default::default(),
        is_offline: false,
        is_egress_imposed: false,
        http: Default::default(),
        diagnosis: Default::default(),
    }
}

fn name_of(id: &str) -> String {
    format!("unreadable-{}", id.get(..NAME_LENGTH).unwrap_or(id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_newer_record_shows_its_known_parts() {
        let id = PodId::random().unwrap();
        let config = SandboxConfig {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..sandbox_config(&id)
        };
        let json =
            json!({"config": config, "created_at": 7, "phase": {"Hovering": 1}, "new": true});
        let view = pod_view(&id, Some(&json), "its format is 2");
        assert_eq!((view.created_at, view.ready), (7, false));
        assert_eq!(view.config.labels, config.labels);
        assert_eq!(
            view.config.annotations.echo()[ANNOTATION],
            "its format is 2"
        );
    }

    #[test]
    fn an_unknown_record_can_be_listed() {
        let (pod, id) = (PodId::random().unwrap(), ContainerId::random().unwrap());
        for json in [None, Some(json!(3)), Some(json!({"config": {"name": 1}}))] {
            let view = pod_view(&pod, json.as_ref(), "EIO");
            assert!(!view.config.name.name.is_empty() && view.created_at > 0);
            let config = container_config(&id, json.as_ref());
            let view = container_view(&id, &pod, Arc::new(config), "EIO");
            assert_eq!(view.state, ContainerState::Unknown);
            assert!(!view.config.name.name.is_empty());
        }
    }
}
