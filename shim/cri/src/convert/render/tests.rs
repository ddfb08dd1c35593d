use super::*;

#[test]
fn a_sandbox_shows_its_request() {
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
