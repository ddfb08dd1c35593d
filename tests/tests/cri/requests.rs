//! Bounds on what the requests for all sandboxes and containers hold together (labels, annotations, environments,
//! arguments), and on what lists show of it.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use tonic::Code;

use crate::attacks::canary::{hostile_with, script};
use crate::linux::shell;
use crate::site::{Pod, daemon_with, refused, tool};

const KIB: usize = 1 << 10;
const EXPECTED: [&str; 2] = ["sandbox.all_requests_bytes", "2097152"];

fn pod(daemon: &Daemon, name: &str, bytes: usize) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    config.annotations.insert("a".into(), "x".repeat(bytes));
    config
}

#[tokio::test]
async fn all_requests_together_are_bounded_and_counted_over_a_restart() {
    let mut daemon = daemon_with(Options {
        sandbox: "all_requests_bytes = 2097152\n".into(),
        ..Options::default()
    })
    .await;
    let cri = daemon.cri();
    let first = Pod::run_config(&daemon, pod(&daemon, "first", 350 * KIB)).await;
    let second = pod(&daemon, "second", 350 * KIB);
    let second = Pod::run_config(&daemon, second).await;
    let third = pod(&daemon, "third", 400 * KIB);
    refused(
        cri.run_pod(&third).await,
        Code::ResourceExhausted,
        &EXPECTED,
    );
    // A retry of what was admitted needs no more room.
    assert_eq!(cri.run_pod(&first.config).await.unwrap(), first.id);

    // Whatever makes a request large counts.
    let mut large = container("large", tool(), &["sleep"]);
    large.envs = vec![cri::KeyValue {
        key: "E".into(),
        value: "x".repeat(100 * KIB).into(),
    }];
    let kept = first.create(&large).await.unwrap();
    large.metadata.as_mut().unwrap().name = "larger".into();
    large.labels.insert("l".into(), "y".repeat(200 * KIB));
    refused(
        first.create(&large).await,
        Code::ResourceExhausted,
        &EXPECTED,
    );

    for _ in 0..2 {
        // Small ones still fit, and leave nothing behind.
        let id = second.tool(&["exit", "0"]).await;
        cri.wait_exit(&id).await.unwrap();
        cri.remove(&id).await.unwrap();
        refused(
            cri.run_pod(&third).await,
            Code::ResourceExhausted,
            &EXPECTED,
        );
        daemon.restart().await.unwrap();
    }
    let cri = daemon.cri();
    cri.remove(&kept).await.unwrap();
    let larger = first.create(&large).await;
    refused(larger, Code::ResourceExhausted, &EXPECTED);
    cri.stop_pod(&second.id).await.unwrap();
    cri.remove_pod(&second.id).await.unwrap();
    first.create(&large).await.unwrap();
    refused(
        cri.run_pod(&third).await,
        Code::ResourceExhausted,
        &EXPECTED,
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_list_is_answered_whatever_all_annotations_together_are() {
    const MANY: usize = 17;
    let daemon = daemon_with(Options::default()).await;
    let cri = daemon.cri();
    let neighbour = Pod::run_config(&daemon, pod(&daemon, "neighbour", 100)).await;
    let mut large = Vec::new();
    for number in 0..MANY {
        let config = pod(&daemon, &format!("large-{number}"), 1000 * KIB);
        large.push(Pod::run_config(&daemon, config).await);
    }
    let mut container = container("large", tool(), &["sleep"]);
    container.annotations = neighbour.config.annotations.clone();
    let small = neighbour.create(&container).await.unwrap();
    container
        .annotations
        .insert("a".into(), "x".repeat(1000 * KIB));
    for pod in &large {
        pod.create(&container).await.unwrap();
    }
    let mut runtime = cri.runtime.clone();
    let pods = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default());
    let pods = pods.await.unwrap().into_inner().items;
    assert_eq!(pods.len(), MANY + 1);
    let shown = |id: &str| pods.iter().find(|pod| pod.id == id).unwrap();
    assert_eq!(
        shown(&neighbour.id).annotations,
        neighbour.config.annotations
    );
    assert!(!shown(&large[0].id).annotations.contains_key("a"));
    assert_eq!(shown(&large[0].id).labels, large[0].config.labels);
    let containers = runtime.list_containers(cri::ListContainersRequest::default());
    let containers = containers.await.unwrap().into_inner().containers;
    assert_eq!(containers.len(), MANY + 1);
    let shown = containers.iter().find(|container| container.id == small);
    assert_eq!(shown.unwrap().annotations, neighbour.config.annotations);
    // Alone, an object is shown whole.
    let status = cri::PodSandboxStatusRequest {
        pod_sandbox_id: large[0].id.clone(),
        verbose: false,
    };
    let status = runtime.pod_sandbox_status(status).await.unwrap();
    let status = status.into_inner().status.unwrap();
    assert_eq!(status.annotations["a"].len(), 1000 * KIB);
    daemon.finish().await.unwrap();
}

/// A request of some bytes takes an image's environment into the daemon's memory.
#[tokio::test]
async fn what_images_add_to_containers_is_bounded_with_the_requests() {
    const MANY: usize = 12;
    let daemon = shell::daemon_with(Options {
        sandbox: "all_requests_bytes = 8388608\n".into(),
        ..Options::default()
    })
    .await;
    let long = |number| format!("A{number}={}", "x".repeat(100 * KIB));
    let env: Vec<String> = (0..9).map(long).chain(["PATH=/bin".into()]).collect();
    let env = serde_json::json!({ "Env": env });
    let image = hostile_with(&daemon, env, |layer| layer).await;
    let pod = Pod::run(&daemon, "greedy").await;
    let mut created = Vec::new();
    for _ in 0..MANY {
        match pod.create(&script(&image, "true")).await {
            Ok(id) => created.push(id),
            Err(status) => {
                let expected = ["sandbox.all_requests_bytes", "8388608", &image];
                refused::<()>(Err(status), Code::ResourceExhausted, &expected);
            }
        }
    }
    assert_eq!(created.len(), 4);
    // What is gone makes room again.
    pod.cri.remove(&created[0]).await.unwrap();
    pod.create(&script(&image, "true")).await.unwrap();
    daemon.finish().await.unwrap();
}

/// A tenant that takes what it gets, with containers that have never started, stops nobody else.
#[tokio::test]
async fn a_namespace_with_large_requests_leaves_room_for_pods_of_others() {
    let daemon = daemon_with(Options {
        sandbox: "all_requests_bytes = 4194304\n".into(),
        ..Options::default()
    })
    .await;
    let of = |name: &str, namespace: &str| {
        let mut config = daemon.pod(name);
        config.metadata.as_mut().unwrap().namespace = namespace.into();
        config
    };
    let greedy = Pod::run_config(&daemon, of("greedy", "greedy")).await;
    let mut large = container("large", tool(), &["sleep"]);
    large.envs = (0..9)
        .map(|number| cri::KeyValue {
            key: format!("E{number}"),
            value: "x".repeat(100 * KIB).into(),
        })
        .collect();
    let mut refusal = None;
    for number in 0..8 {
        large.metadata.as_mut().unwrap().name = format!("large-{number}");
        refusal = greedy.create(&large).await.err();
        if refusal.is_some() {
            break;
        }
    }
    let expected = ["sandbox.all_requests_bytes", "4194304", "greedy"];
    refused::<()>(Err(refusal.unwrap()), Code::ResourceExhausted, &expected);
    let other = Pod::run_config(&daemon, of("other", "other")).await;
    let id = other.tool(&["exit", "0"]).await;
    daemon.cri().wait_exit(&id).await.unwrap();
    daemon.finish().await.unwrap();
}
