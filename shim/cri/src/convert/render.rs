//! Renders snapshots of sandboxes and containers.
//!
//! Called by `pods`, `containers` and `events`. Source: cri-api v0.37 api.proto.
//! Invariants: labels, annotations and mounts are those of the request, byte for byte; times are nanoseconds since 1970
//! UTC; a container's `image_ref` and `image_id` are the `Image.id` that a pull returned; no reply contains an
//! environment variable.
//! Must not know: whether an object exists.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_lifecycle::{
    ContainerState, ContainerView, Event, EventKind, IdMapping, MountConfig, NamespaceMode,
    PodName, PodView, Propagation, Resources, UserNamespaceConfig,
};
use coracle_proto::runtime::v1 as cri;
use coracle_spec::egress::Egress;
use serde_json::json;

use super::fit::fit;
use super::signal;

/// One sandbox in a list.
pub(crate) fn pod(view: &PodView) -> cri::PodSandbox {
    cri::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.config.name)),
        state: pod_state(view),
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
        runtime_handler: view.config.handler_name().to_owned(),
    }
}

/// One container in a list.
pub(crate) fn container(view: &ContainerView) -> cri::Container {
    cri::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod.to_string(),
        metadata: Some(container_metadata(view)),
        image: Some(image_spec(view)),
        image_ref: view.image_id.clone(),
        state: container_state(view.state) as i32,
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
        image_id: view.image_id.clone(),
    }
}

/// A sandbox's status. `ip` is the primary address, empty on the host's network.
fn pod_status(view: &PodView) -> cri::PodSandboxStatus {
    let mut ips = view.ips.iter().map(ToString::to_string);
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    let requested = view.config.namespaces;
    let options = cri::NamespaceOption {
        network: namespace_mode(requested.network),
        pid: namespace_mode(requested.pid),
        ipc: namespace_mode(requested.ipc),
        userns_options: view.config.userns.as_ref().map(userns),
        ..Default::default()
    };
    let namespaces = cri::Namespace {
        options: Some(options),
    };
    cri::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.config.name)),
        state: pod_state(view),
        created_at: view.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(namespaces),
        }),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
        runtime_handler: view.config.handler_name().to_owned(),
    }
}

/// The reply of PodSandboxStatus, with the sandbox's containers; `info` only for a verbose request.
pub(crate) fn pod_status_reply<'a>(
    view: &PodView,
    containers: impl Iterator<Item = &'a ContainerView>,
    request: &cri::PodSandboxStatusRequest,
) -> cri::PodSandboxStatusResponse {
    let details = json!({
        "runtimeHandler": view.config.handler_name(),
        "egress": egress(view),
        "cgroupParent": view.config.cgroup_parent,
        "hostname": view.config.hostname,
        "logDirectory": view.config.log_directory,
    });
    cri::PodSandboxStatusResponse {
        status: Some(pod_status(view)),
        info: info(request.verbose, &details),
        containers_statuses: containers.map(container_status).collect(),
        timestamp: now(),
    }
}

/// The destinations that the pod may reach, as decided at its creation: `"any"`, `"none"` or a list.
fn egress(view: &PodView) -> serde_json::Value {
    match (view.config.is_offline(), view.config.reach()) {
        (true, _) => json!("none"),
        (false, Egress::Open) => json!("any"),
        (false, Egress::Listed(list)) => json!(list.rules),
    }
}

/// The status of one container. Source: message `ContainerStatus`, fields 1-19.
///
/// `exit_code` is valid only when `finished_at` is nonzero. `reason` is "OOMKilled" for a cgroup out-of-memory kill and
/// nothing else. A container with an unusable record is `CONTAINER_UNKNOWN`.
fn container_status(view: &ContainerView) -> cri::ContainerStatus {
    let user = cri::LinuxContainerUser {
        uid: i64::from(view.uid),
        gid: i64::from(view.gid),
        supplemental_groups: view.groups.iter().copied().map(i64::from).collect(),
    };
    let resources = cri::ContainerResources {
        linux: Some(resources(&view.config.resources)),
        windows: None,
    };
    cri::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        state: container_state(view.state) as i32,
        created_at: view.created_at,
        started_at: view.started_at,
        finished_at: view.finished_at,
        exit_code: view.exit_code,
        image: Some(image_spec(view)),
        image_ref: view.image_id.clone(),
        reason: view.reason.clone(),
        message: view.message.clone(),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
        mounts: mounts(view),
        log_path: view.log_path.clone(),
        resources: Some(resources),
        image_id: view.image_id.clone(),
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal: signal::shown(view.stop_signal),
    }
}

/// The reply of ContainerStatus; `info` only for a verbose request.
pub(crate) fn container_status_reply(
    view: &ContainerView,
    request: &cri::ContainerStatusRequest,
) -> cri::ContainerStatusResponse {
    let details = json!({
        "sandboxID": view.pod.as_str(),
        "imageID": view.image_id,
        "command": view.config.command,
        "args": view.config.args,
        "readonlyRootfs": view.config.readonly_rootfs,
    });
    cri::ContainerStatusResponse {
        status: Some(container_status(view)),
        info: info(request.verbose, &details),
    }
}

/// One event, with the sandbox as it was directly afterwards.
pub(crate) fn event(event: &Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let mut reply = cri::ContainerEventResponse {
        container_id: event.container.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: Some(pod_status(&event.pod)),
        containers_statuses: event
            .containers
            .iter()
            .map(|view| container_status(view))
            .collect(),
    };
    fit(std::slice::from_mut(&mut reply));
    reply
}

/// Nanoseconds since 1970 UTC.
pub(super) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The extra data of a verbose reply: one JSON object under `info`, where `crictl inspect` looks for it.
fn info(verbose: bool, details: &serde_json::Value) -> BTreeMap<String, String> {
    if !verbose {
        return BTreeMap::new();
    }
    BTreeMap::from([("info".to_owned(), details.to_string())])
}

pub(super) fn pod_metadata(name: &PodName) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

pub(super) fn container_metadata(view: &ContainerView) -> cri::ContainerMetadata {
    cri::ContainerMetadata {
        name: view.config.name.name.clone(),
        attempt: view.config.name.attempt,
    }
}

fn image_spec(view: &ContainerView) -> cri::ImageSpec {
    cri::ImageSpec {
        image: view.config.image.clone(),
        user_specified_image: view.config.user_specified_image.clone(),
        ..Default::default()
    }
}

fn pod_state(view: &PodView) -> i32 {
    let state = if view.ready {
        cri::PodSandboxState::SandboxReady
    } else {
        cri::PodSandboxState::SandboxNotready
    };
    state as i32
}

fn container_state(state: ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running => cri::ContainerState::ContainerRunning,
        ContainerState::Exited => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

fn namespace_mode(mode: NamespaceMode) -> i32 {
    let mode = match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
        NamespaceMode::Target => cri::NamespaceMode::Target,
    };
    mode as i32
}

fn id_mapping(map: &IdMapping) -> cri::IdMapping {
    cri::IdMapping {
        host_id: map.outside,
        container_id: map.inside,
        length: map.count,
    }
}

fn userns(config: &UserNamespaceConfig) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod as i32,
        uids: vec![id_mapping(&config.uid)],
        gids: vec![id_mapping(&config.gid)],
    }
}

/// The requested mounts, in their order; image volumes with the id of the mounted image.
fn mounts(view: &ContainerView) -> Vec<cri::Mount> {
    let mut ids = view.image_volumes.iter();
    let one = |config: &MountConfig| {
        let mut shown = mount(config);
        if let (Some(volume), Some(image)) = (&config.image, &mut shown.image) {
            let id = ids.next().unwrap_or(&volume.image);
            image.image.clone_from(id);
            image.image_ref.clone_from(id);
        }
        shown
    };
    view.config.mounts.iter().map(one).collect()
}

fn mount(config: &MountConfig) -> cri::Mount {
    let propagation = match config.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    let image = config.image.as_ref().map(|volume| cri::ImageSpec {
        image: volume.image.clone(),
        user_specified_image: volume.user_specified_image.clone(),
        ..Default::default()
    });
    let sub_path = config.image.as_ref().map(|volume| volume.sub_path.clone());
    cri::Mount {
        container_path: config.container_path.clone(),
        // The path came from a message, so it is UTF-8.
        host_path: config.host_path.to_string_lossy().into_owned(),
        readonly: config.readonly,
        selinux_relabel: config.selinux_relabel,
        propagation: propagation as i32,
        uid_mappings: config.uid_mappings.iter().map(id_mapping).collect(),
        gid_mappings: config.gid_mappings.iter().map(id_mapping).collect(),
        recursive_read_only: config.recursive_read_only,
        image,
        image_sub_path: sub_path.unwrap_or_default(),
        mount_options: config.options.clone(),
    }
}

fn resources(limits: &Resources) -> cri::LinuxContainerResources {
    let hugepages = limits.hugepages.iter();
    let hugepages = hugepages.map(|(size, limit)| cri::HugepageLimit {
        page_size: size.clone(),
        limit: *limit,
    });
    cri::LinuxContainerResources {
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpu_shares: limits.cpu_shares,
        memory_limit_in_bytes: limits.memory_limit_bytes,
        oom_score_adj: limits.oom_score_adj,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        hugepage_limits: hugepages.collect(),
        unified: limits.unified.clone(),
        memory_swap_limit_in_bytes: limits.memory_swap_limit_bytes,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(crate) mod samples;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
