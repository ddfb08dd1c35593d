//! Replies about sandboxes and containers: snapshots into messages.
//!
//! Called by `pods`, `containers` and `events`. Source: cri-api v0.37 api.proto.
//! Invariants: labels, annotations and mounts are what was asked for, byte for byte; times are nanoseconds
//! since 1970 UTC; a container's `image_ref` and `image_id` are the `Image.id` that a pull answered; no reply
//! holds an environment variable.
//! Not here: what was asked for, and whether an object exists.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_lifecycle::{
    ContainerState, ContainerView, Event, EventKind, IdMapping, MountConfig, NamespaceMode,
    PodName, PodView, Propagation, Resources, UserNamespaceConfig,
};
use coracle_proto::runtime::v1 as cri;
use coracle_spec::egress::Egress;
use serde_json::json;

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
        runtime_handler: view.config.handler.as_str().to_owned(),
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
    let asked = view.config.namespaces;
    let options = cri::NamespaceOption {
        network: namespace_mode(asked.network),
        pid: namespace_mode(asked.pid),
        ipc: namespace_mode(asked.ipc),
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
        runtime_handler: view.config.handler.as_str().to_owned(),
    }
}

/// The reply of PodSandboxStatus, with the sandbox's containers; `info` only when asked for.
pub(crate) fn pod_status_reply<'a>(
    view: &PodView,
    containers: impl Iterator<Item = &'a ContainerView>,
    request: &cri::PodSandboxStatusRequest,
) -> cri::PodSandboxStatusResponse {
    let details = json!({
        "runtimeHandler": view.config.handler.as_str(),
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

/// What the pod may reach, as it was decided when it was made: `"any"`, `"none"` or the targets.
fn egress(view: &PodView) -> serde_json::Value {
    match (view.config.is_offline(), view.config.reach()) {
        (true, _) => json!("none"),
        (false, Egress::Open) => json!("any"),
        (false, Egress::Listed(list)) => json!(list.rules),
    }
}

/// Renders one container for kubelet. Source: message `ContainerStatus`, fields 1-19.
///
/// `exit_code` counts only when `finished_at` is not 0. `reason` is "OOMKilled" for a cgroup out-of-memory kill
/// and nothing else. A container we lost renders as `CONTAINER_UNKNOWN`.
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

/// The reply of ContainerStatus; `info` only when asked for.
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

/// One event, with the sandbox as it was right after it.
pub(crate) fn event(event: &Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    cri::ContainerEventResponse {
        container_id: event.container.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: Some(pod_status(&event.pod)),
        containers_statuses: event
            .containers
            .iter()
            .map(|view| container_status(view))
            .collect(),
    }
}

/// Nanoseconds since 1970 UTC.
pub(super) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What a verbose reply carries: one JSON object under `info`, where `crictl inspect` looks for it.
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

/// The mounts asked for, in their order; those of images with the id of the image that is mounted.
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
        // It came from a message, so it is text.
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

/// Snapshots for tests of this module and its neighbours, made by way of the requests that lead to them.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(crate) mod samples {
    use std::sync::Arc;

    use super::super::{container_config, sandbox_config};
    use super::*;
    use crate::policy::tests::usual;
    use coracle_lifecycle::Grants;

    /// A ready sandbox whose id is 64 times `digit`.
    pub(in crate::convert) fn pod(digit: char) -> PodView {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 3,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            labels: [("app".to_owned(), "web ü\n".to_owned())].into(),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: "coracle".into(),
        };
        PodView {
            id: digit.to_string().repeat(64).parse().unwrap(),
            config: Arc::new(sandbox_config(request, &usual()).unwrap()),
            ready: true,
            created_at: 1_700_000_000_000_000_001,
            ips: vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            cgroup_parent: "/kubepods".into(),
        }
    }

    /// A deletion of the sandbox of [`pod`] at `at`.
    pub(crate) fn event(at: i64) -> Arc<Event> {
        let pod = pod('1');
        let (container, containers) = (pod.id.to_string(), vec![container('a', '1').into()]);
        Arc::new(Event {
            kind: EventKind::Deleted,
            container,
            at,
            pod: pod.into(),
            containers,
        })
    }

    /// What [`container`] was asked to be.
    fn sample_config() -> cri::ContainerConfig {
        let limits = cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            ..Default::default()
        };
        let image = cri::ImageSpec {
            image: "sha256:00".into(),
            user_specified_image: "hello:1".into(),
            ..Default::default()
        };
        let mount = cri::Mount {
            container_path: "/dev/termination-log".into(),
            host_path: "/var/lib/kubelet/x".into(),
            propagation: 1,
            ..Default::default()
        };
        let image_mount = cri::Mount {
            container_path: "/models".into(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "files:1".into(),
                user_specified_image: "files".into(),
                ..Default::default()
            }),
            image_sub_path: "small".into(),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "c".into(),
                attempt: 1,
            }),
            image: Some(image),
            envs: vec![cri::KeyValue {
                key: "TOKEN".into(),
                value: b"s3cret".to_vec(),
            }],
            mounts: vec![mount, image_mount],
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(limits),
                security_context: None,
            }),
            ..Default::default()
        }
    }

    /// An exited container of sandbox `pod` whose id is 64 times `digit`.
    pub(in crate::convert) fn container(digit: char, pod: char) -> ContainerView {
        let config = Some(sample_config());
        let request = cri::CreateContainerRequest {
            config,
            ..Default::default()
        };
        ContainerView {
            id: digit.to_string().repeat(64).parse().unwrap(),
            pod: pod.to_string().repeat(64).parse().unwrap(),
            config: Arc::new(container_config(request, &Grants::default(), "").unwrap()),
            image_id: "sha256:00".into(),
            state: ContainerState::Exited,
            created_at: 10,
            started_at: 20,
            finished_at: 30,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: String::new(),
            log_path: "/var/log/pods/x/c/0.log".into(),
            uid: 1000,
            gid: 2000,
            groups: vec![3000],
            image_volumes: vec!["sha256:11".into()],
            stop_signal: libc::SIGTERM,
            cgroup: "/kubepods/x".into(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_shows_what_was_asked_for() {
        let view = samples::pod('1');
        let reply = pod_status_reply(&view, std::iter::empty(), &Default::default());
        let status = reply.status.unwrap();
        assert_eq!(status.labels["app"], "web ü\n");
        assert_eq!(status.runtime_handler, "coracle");
        assert_eq!(status.created_at, 1_700_000_000_000_000_001);
        assert_eq!(status.metadata.unwrap().attempt, 3);
        let network = status.network.unwrap();
        assert_eq!(
            (network.ip.as_str(), network.additional_ips[0].ip.as_str()),
            ("10.88.0.7", "fd00::7")
        );
        assert_eq!(status.state, cri::PodSandboxState::SandboxReady as i32);
        assert!(reply.info.is_empty());
        assert!(
            reply.timestamp > 1_700_000_000_000_000_000,
            "{}",
            reply.timestamp
        );
    }

    #[test]
    fn host_network_shows_in_the_namespaces_and_has_no_ip() {
        let mut view = samples::pod('1');
        std::sync::Arc::make_mut(&mut view.config)
            .namespaces
            .network = NamespaceMode::Node;
        view.ips.clear();
        let status = pod_status(&view);
        let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(options.network, cri::NamespaceMode::Node as i32);
        assert_eq!(status.network.unwrap().ip, "");
    }

    #[test]
    fn a_containers_status_is_what_kubelet_reads() {
        let view = samples::container('a', '1');
        let status = container_status(&view);
        assert_eq!(
            (status.image_ref.as_str(), status.image_id.as_str()),
            ("sha256:00", "sha256:00")
        );
        assert_eq!(status.image.unwrap().user_specified_image, "hello:1");
        assert_eq!(
            (status.created_at, status.started_at, status.finished_at),
            (10, 20, 30)
        );
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled")
        );
        assert_eq!(status.mounts[0].container_path, "/dev/termination-log");
        assert_eq!(status.mounts[0].propagation, 1);
        assert_eq!(status.mounts[0].image, None);
        let volume = &status.mounts[1];
        let image = volume.image.clone().unwrap();
        assert_eq!(
            (image.image.as_str(), image.user_specified_image.as_str()),
            ("sha256:11", "files")
        );
        assert_eq!(
            (volume.image_sub_path.as_str(), volume.readonly),
            ("small", true)
        );
        assert_eq!(
            status
                .resources
                .unwrap()
                .linux
                .unwrap()
                .memory_limit_in_bytes,
            32 << 20
        );
        assert_eq!(
            status.user.unwrap().linux.unwrap().supplemental_groups,
            [3000]
        );
        assert_eq!(status.stop_signal, cri::Signal::Sigterm as i32);
        let listed = container(&view);
        assert_eq!(
            (listed.image_id, listed.pod_sandbox_id),
            ("sha256:00".to_owned(), "1".repeat(64))
        );
    }

    #[test]
    fn a_verbose_status_is_json_without_the_environment() {
        let reply = container_status_reply(
            &samples::container('a', '1'),
            &cri::ContainerStatusRequest {
                verbose: true,
                ..Default::default()
            },
        );
        let details: serde_json::Value = serde_json::from_str(&reply.info["info"]).unwrap();
        assert_eq!(details["sandboxID"], "1".repeat(64));
        assert!(!format!("{reply:?}").contains("s3cret"));
    }

    #[test]
    fn an_event_carries_its_sandbox_and_containers() {
        let shown = event(&samples::event(5));
        assert_eq!(
            shown.container_event_type,
            cri::ContainerEventType::ContainerDeletedEvent as i32
        );
        assert_eq!(shown.container_id, shown.pod_sandbox_status.unwrap().id);
        assert_eq!(shown.containers_statuses.len(), 1);
        assert_eq!(shown.created_at, 5);
    }
}
