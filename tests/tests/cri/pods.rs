//! Sandboxes: RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Daemon;
use coracle_tests::leaks;
use tonic::Code;

use crate::site::{Pod, daemon, failing_daemon, refused};

/// A pod with labels and annotations that only survive when nobody touches them.
fn decorated(daemon: &Daemon, name: &str) -> cri::PodSandboxConfig {
    let odd = [
        ("", "empty key"),
        ("a.b/c-d_e", "dots\nand\tnewlines \u{1f30a}"),
        ("empty", ""),
    ];
    let odd: BTreeMap<String, String> = odd.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    cri::PodSandboxConfig {
        labels: odd.clone(),
        annotations: odd,
        ..daemon.pod(name)
    }
}

#[tokio::test]
async fn status_and_list_show_the_requested_configuration() {
    let daemon = daemon().await;
    let before = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let pod = Pod::run_config(&daemon, decorated(&daemon, "echo")).await;
    let after = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();

    assert_eq!((pod.id.len(), pod.id.to_lowercase()), (64, pod.id.clone()));
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(
        (&status.labels, &status.annotations),
        (&pod.config.labels, &pod.config.annotations)
    );
    assert!(
        (before..=after).contains(&(status.created_at as u128)),
        "{}",
        status.created_at
    );
    assert_eq!(status.runtime_handler, "");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), cri::NamespaceMode::Pod);
    assert_eq!(options.pid(), cri::NamespaceMode::Container);

    let listed = pod.cri.list_pods(None).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].id, &listed[0].metadata),
        (&pod.id, &pod.config.metadata)
    );
    assert_eq!(
        (&listed[0].labels, &listed[0].annotations),
        (&pod.config.labels, &pod.config.annotations)
    );
    assert_eq!(listed[0].created_at, status.created_at);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stop_and_remove_are_idempotent_and_the_absent_is_fine() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "again").await;
    refused(
        pod.cri.pod_status("0".repeat(64).as_str()).await,
        Code::NotFound,
        &["00000000"],
    );
    for _ in 0..2 {
        pod.cri.stop_pod(&pod.id).await.unwrap();
        let status = pod.cri.pod_status(&pod.id).await.unwrap();
        assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        pod.cri.remove_pod(&pod.id).await.unwrap();
        refused(
            pod.cri.pod_status(&pod.id).await,
            Code::NotFound,
            &[&pod.id],
        );
        pod.cri.stop_pod(&pod.id).await.unwrap();
    }
    assert_eq!(pod.cri.list_pods(None).await.unwrap(), []);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stopping_a_pod_kills_its_containers_and_removing_it_takes_them_along() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "stop").await;
    let running = pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    pod.cri.stop_pod(&pod.id).await.unwrap();
    let status = pod.cri.status(&running).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert!(
        status.finished_at > 0 && [137, 143].contains(&status.exit_code),
        "{status:?}"
    );
    pod.cri.remove_pod(&pod.id).await.unwrap();
    refused(pod.cri.status(&running).await, Code::NotFound, &[&running]);

    let pod = Pod::run(&daemon, "remove-running").await;
    let running = pod.tool(&["sleep"]).await;
    pod.cri.remove_pod(&pod.id).await.unwrap();
    refused(pod.cri.status(&running).await, Code::NotFound, &[&running]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lists_filter_by_id_prefix_state_and_all_labels() {
    let daemon = daemon().await;
    let labelled = |name: &str, pairs: &[(&str, &str)]| cri::PodSandboxConfig {
        labels: labels(pairs),
        ..daemon.pod(name)
    };
    let a = Pod::run_config(&daemon, labelled("a", &[("app", "x"), ("tier", "1")])).await;
    let b = Pod::run_config(&daemon, labelled("b", &[("app", "x"), ("tier", "2")])).await;
    b.cri.stop_pod(&b.id).await.unwrap();
    let by_id = |id: &str| cri::PodSandboxFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    let by_state = |state: cri::PodSandboxState| cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue {
            state: state as i32,
        }),
        ..Default::default()
    };
    let by_labels = |pairs: &[(&str, &str)]| cri::PodSandboxFilter {
        label_selector: labels(pairs),
        ..Default::default()
    };
    for (filter, expected) in [
        (cri::PodSandboxFilter::default(), &[&a, &b][..]),
        (by_id(&a.id), &[&a]),
        (by_id(&a.id[..13]), &[&a]),
        (by_id(&"f".repeat(64)), &[]),
        (by_state(cri::PodSandboxState::SandboxReady), &[&a]),
        (by_state(cri::PodSandboxState::SandboxNotready), &[&b]),
        (by_labels(&[("app", "x")]), &[&a, &b]),
        (by_labels(&[("app", "x"), ("tier", "2")]), &[&b]),
        (by_labels(&[("app", "x"), ("tier", "3")]), &[]),
    ] {
        let found = a.cri.list_pods(Some(filter.clone())).await.unwrap();
        let found: BTreeSet<String> = found.into_iter().map(|pod| pod.id).collect();
        let expected: BTreeSet<String> = expected.iter().map(|pod| pod.id.clone()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    daemon.finish().await.unwrap();
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn streamed_lists_give_each_item_once_and_end() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "streamed").await;
    let container = pod.tool(&["sleep"]).await;
    let mut runtime = pod.cri.runtime.clone();
    let mut pods = runtime
        .stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    while let Some(part) = pods.message().await.unwrap() {
        ids.extend(part.pod_sandboxes.into_iter().map(|pod| pod.id));
    }
    assert_eq!(ids, std::slice::from_ref(&pod.id));
    let request = cri::StreamContainersRequest::default();
    let mut containers = runtime
        .stream_containers(request)
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    while let Some(part) = containers.message().await.unwrap() {
        ids.extend(part.containers.into_iter().map(|container| container.id));
    }
    assert_eq!(ids, [container]);
    let request = cri::StreamImagesRequest::default();
    let mut images = pod
        .cri
        .images
        .clone()
        .stream_images(request)
        .await
        .unwrap()
        .into_inner();
    let mut count = 0;
    while let Some(part) = images.message().await.unwrap() {
        count += part.images.len();
    }
    assert_eq!(count, pod.cri.list_images().await.unwrap().len());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn each_pod_has_an_address_of_its_own_that_answers() {
    let daemon = daemon().await;
    let mut seen = BTreeSet::new();
    for name in ["one", "two", "three"] {
        let pod = Pod::run(&daemon, name).await;
        let network = pod.cri.pod_status(&pod.id).await.unwrap().network.unwrap();
        let ip: IpAddr = network.ip.parse().unwrap();
        assert!(seen.insert(ip), "{ip} was given out twice");
        // Nobody listens: the pod's own kernel says so at once, which only happens when the packet gets there.
        let connected = TcpStream::connect_timeout(&SocketAddr::new(ip, 9), TIMEOUT);
        assert_eq!(
            connected.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    }
    assert_eq!(
        leaks::interfaces(&daemon.scratch().interface_prefix()).len(),
        3
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_host_network_pod_leases_no_address() {
    let daemon = daemon().await;
    let mut config = daemon.pod("host");
    // As kubelet does: a pod on the host's network brings no hostname.
    config.hostname.clear();
    let linux = config.linux.as_mut().unwrap();
    let context = linux.security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    let pod = Pod::run_config(&daemon, config).await;
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), cri::NamespaceMode::Node);
    assert_eq!(
        leaks::interfaces(&daemon.scratch().interface_prefix()),
        Vec::<String>::new()
    );
    let (status, _) = pod
        .finish(
            &daemon,
            &coracle_tests::client::container("c", crate::site::tool(), &["show"]),
        )
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn concurrent_requests_for_the_same_pod_create_it_once() {
    let daemon = daemon().await;
    let config = daemon.pod("same");
    let mut asking = Vec::new();
    for _ in 0..20 {
        let (cri, config) = (daemon.cri(), config.clone());
        asking.push(tokio::spawn(async move { cri.run_pod(&config).await }));
    }
    let mut ids = BTreeSet::new();
    for answer in asking {
        match answer.await.unwrap() {
            Ok(id) => drop(ids.insert(id)),
            Err(refusal) => assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal}"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(daemon.cri().list_pods(None).await.unwrap().len(), 1);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_retry_after_a_client_timeout_gets_the_late_result() {
    let daemon = failing_daemon().await;
    daemon
        .plan("run.network delay:3000\ncreate.rootfs delay:3000\n")
        .unwrap();
    let cri = daemon.cri();
    let config = daemon.pod("late");
    tokio::time::timeout(Duration::from_millis(200), cri.run_pod(&config))
        .await
        .unwrap_err();
    let pod = cri.run_pod(&config).await.unwrap();
    assert_eq!(cri.list_pods(None).await.unwrap().len(), 1);

    let container = coracle_tests::client::container("late", crate::site::tool(), &["show"]);
    tokio::time::timeout(
        Duration::from_millis(200),
        cri.create(&pod, &container, &config),
    )
    .await
    .unwrap_err();
    let id = cri.create(&pod, &container, &config).await.unwrap();
    let listed = cri.list(None).await.unwrap();
    assert_eq!((listed.len(), &listed[0].id), (1, &id));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_that_fails_half_way_leaves_nothing() {
    let daemon = failing_daemon().await;
    for site in [
        "run.record",
        "run.netns",
        "run.network",
        "run.cgroup",
        "run.keeper",
        "run.ready-record",
    ] {
        for action in ["error", "enospc"] {
            daemon.plan(&format!("{site} {action}\n")).unwrap();
            let refusal = daemon.cri().run_pod(&daemon.pod("half")).await;
            assert!(refusal.is_err(), "{site} {action} did not fail the call");
            assert_eq!(
                daemon.cri().list_pods(None).await.unwrap(),
                [],
                "{site} {action}"
            );
            daemon.expect_no_leak().await.unwrap();
        }
    }
    daemon.plan("").unwrap();
    Pod::run(&daemon, "half").await;
    daemon.finish().await.unwrap();
}
