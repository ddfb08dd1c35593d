//! Stats of containers and sandboxes: the numbers are those of what really runs, and nothing that ends fails a list.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use tonic::Code;

use crate::site::{Pod, daemon, refused, tool};

pub async fn stats(pod: &Pod, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest {
        container_id: id.into(),
    };
    let reply = pod.cri.runtime.clone().container_stats(request).await;
    reply.unwrap().into_inner().stats.unwrap()
}

async fn list(pod: &Pod, filter: Option<cri::ContainerStatsFilter>) -> Vec<cri::ContainerStats> {
    let request = cri::ListContainerStatsRequest { filter };
    let reply = pod.cri.runtime.clone().list_container_stats(request).await;
    reply.unwrap().into_inner().stats
}

async fn pod_stats(pod: &Pod) -> cri::LinuxPodSandboxStats {
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let reply = pod.cri.runtime.clone().pod_sandbox_stats(request).await;
    reply.unwrap().into_inner().stats.unwrap().linux.unwrap()
}

pub fn number(value: &Option<cri::UInt64Value>) -> u64 {
    value.as_ref().expect("a number").value
}

pub fn cpu_of(stats: &cri::ContainerStats) -> u64 {
    number(&stats.cpu.as_ref().unwrap().usage_core_nano_seconds)
}

fn ids(stats: &[cri::ContainerStats]) -> Vec<String> {
    let id = |stats: &cri::ContainerStats| stats.attributes.as_ref().unwrap().id.clone();
    let mut ids: Vec<_> = stats.iter().map(id).collect();
    ids.sort();
    ids
}

/// Asks again and again until `good` says yes.
async fn until(pod: &Pod, id: &str, good: impl Fn(&cri::ContainerStats) -> bool) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let found = stats(pod, id).await;
        if good(&found) {
            return;
        }
        assert!(Instant::now() < end, "it stays {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_guest_that_burns_cpu_is_seen_to_over_a_restart_of_the_daemon() {
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "burn").await;
    let mut config = container("spin", tool(), &["spin"]);
    config.labels = BTreeMap::from([("app".to_owned(), "burner".to_owned())]);
    config.annotations = BTreeMap::from([("note".to_owned(), "x\n".to_owned())]);
    let id = pod.start(&config).await;
    let begun = stats(&pod, &id).await;
    let attributes = begun.attributes.clone().unwrap();
    assert_eq!(attributes.metadata, config.metadata);
    assert_eq!(
        (&attributes.labels, &attributes.annotations),
        (&config.labels, &config.annotations)
    );
    until(&pod, &id, |now| {
        let used = cpu_of(now) - cpu_of(&begun);
        let rate = now.cpu.as_ref().unwrap().usage_nano_cores.as_ref();
        used > 300_000_000 && rate.is_some_and(|rate| rate.value > 50_000_000)
    })
    .await;
    let before = stats(&pod, &id).await;
    let whole = pod_stats(&pod).await.cpu.unwrap();
    assert!(number(&whole.usage_core_nano_seconds) >= cpu_of(&before));
    daemon.kill();
    daemon.restart().await.unwrap();
    let after = stats(&pod, &id).await;
    assert!(cpu_of(&after) >= cpu_of(&before));
    assert!(after.cpu.unwrap().timestamp > before.cpu.unwrap().timestamp);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_takes_memory_is_seen_to_and_so_is_what_is_left_of_its_limit() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "memory").await;
    let mut config = container("grow", tool(), &["grow", "64"]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = 256 << 20;
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "grow", "touched 64 MiB").await;
    let memory = stats(&pod, &id).await.memory.unwrap();
    let (usage, working_set) = (
        number(&memory.usage_bytes),
        number(&memory.working_set_bytes),
    );
    assert!(
        ((64 << 20)..(96 << 20)).contains(&working_set),
        "{working_set}"
    );
    assert!(usage >= working_set, "{usage} < {working_set}");
    assert_eq!(
        number(&memory.available_bytes),
        (256 << 20) - working_set,
        "of the limit"
    );
    let whole = pod_stats(&pod).await;
    assert!(number(&whole.memory.unwrap().working_set_bytes) >= 64 << 20);
    // The keeper and the guest.
    assert_eq!(number(&whole.process.unwrap().process_count), 2);
    assert_eq!(ids(&whole.containers), [id]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_guest_writes_counts_and_stays_counted_after_its_end() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "disk").await;
    let idle = pod
        .create(&container("idle", tool(), &["show"]))
        .await
        .unwrap();
    let text = "x".repeat(100_000);
    let config = container("write", tool(), &["write", "/file", &text]);
    let id = pod.start(&config).await;
    pod.cri.wait_exit(&id).await.unwrap();
    until(&pod, &id, |now| {
        let layer = now.writable_layer.as_ref();
        layer.is_some_and(|layer| number(&layer.used_bytes) >= 100_000)
    })
    .await;
    let written = stats(&pod, &id).await;
    assert!(written.cpu.is_none() && written.memory.is_none());
    let layer = written.writable_layer.unwrap();
    assert!(layer.timestamp > 0);
    let root = daemon.scratch().dir().join("root");
    assert_eq!(layer.fs_id.unwrap().mountpoint, root.display().to_string());
    let empty = stats(&pod, &idle).await;
    let empty_layer = empty.writable_layer.unwrap();
    assert_eq!(
        number(&layer.inodes_used),
        number(&empty_layer.inodes_used) + 1
    );
    // One that was created and not started has used nothing yet.
    assert_eq!(number(&empty.cpu.unwrap().usage_core_nano_seconds), 0);
    assert_eq!(
        ids(&list(&pod, None).await),
        {
            let mut both = vec![id, idle];
            both.sort();
            both
        },
        "what has ended is listed, too"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_goes_through_a_pods_interface_counts_and_the_hosts_network_is_not_the_pods() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "network").await;
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    let ip = status.network.unwrap().ip;
    let received = |stats: cri::LinuxPodSandboxStats| {
        let network = stats.network.unwrap();
        assert!(network.timestamp > 0);
        assert_eq!(network.interfaces, []);
        let eth0 = network.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        assert_eq!(number(&eth0.rx_errors) + number(&eth0.tx_errors), 0);
        number(&eth0.rx_bytes)
    };
    let before = received(pod_stats(&pod).await);
    let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..10 {
        // Nobody listens: what counts is that it arrived.
        let _ = sender.send_to(&[7; 1000], (ip.as_str(), 9));
    }
    let after = received(pod_stats(&pod).await);
    assert!(after >= before + 10_000, "{before} -> {after}");

    let mut config = daemon.pod("host");
    let linux = config.linux.as_mut().unwrap();
    let context = linux.security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    config.hostname = String::new();
    let host = Pod::run_config(&daemon, config).await;
    assert_eq!(pod_stats(&host).await.network, None);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lists_obey_their_filters_and_outlive_what_they_show() {
    let daemon = daemon().await;
    let (one, two) = (
        Pod::run(&daemon, "one").await,
        Pod::run(&daemon, "two").await,
    );
    let mut config = container("a", tool(), &["sleep"]);
    config.labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let (a, b) = (one.start(&config).await, two.tool(&["sleep"]).await);
    let mut both = vec![a.clone(), b.clone()];
    both.sort();
    let none = cri::ContainerStatsFilter::default;
    assert_eq!(ids(&list(&one, None).await), both);
    assert_eq!(ids(&list(&one, Some(none())).await), both);
    let filters = [
        cri::ContainerStatsFilter {
            id: a.clone(),
            ..none()
        },
        cri::ContainerStatsFilter {
            pod_sandbox_id: one.id.clone(),
            ..none()
        },
        cri::ContainerStatsFilter {
            label_selector: config.labels.clone(),
            ..none()
        },
    ];
    for filter in filters {
        let found = ids(&list(&one, Some(filter)).await);
        assert_eq!(found, std::slice::from_ref(&a));
    }
    let request = cri::StreamContainerStatsRequest { filter: None };
    let mut stream = one.cri.runtime.clone();
    let mut stream = stream
        .stream_container_stats(request)
        .await
        .unwrap()
        .into_inner();
    let mut streamed = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        streamed.extend(message.container_stats);
    }
    assert_eq!(ids(&streamed), both);

    two.cri.stop_pod(&two.id).await.unwrap();
    let pods = cri::ListPodSandboxStatsRequest { filter: None };
    let listed = one.cri.runtime.clone().list_pod_sandbox_stats(pods).await;
    let listed = listed.unwrap().into_inner().stats;
    assert_eq!(listed.len(), 1, "a stopped sandbox has no stats");
    assert_eq!(listed[0].attributes.as_ref().unwrap().id, one.id);
    assert_eq!(ids(&list(&one, None).await), both);
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: two.id.clone(),
    };
    let refusal = two.cri.runtime.clone().pod_sandbox_stats(request).await;
    refused(refusal, Code::FailedPrecondition, &["not ready"]);
    let request = cri::ContainerStatsRequest {
        container_id: "f".repeat(64),
    };
    let refusal = two.cri.runtime.clone().container_stats(request).await;
    refused(refusal, Code::NotFound, &["no container"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lists_of_many_are_answered_at_once() {
    const MANY: usize = 300;
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "many").await;
    for number in 0..MANY {
        let config = container(&format!("c{number}"), tool(), &["show"]);
        pod.create(&config).await.unwrap();
    }
    let end = Instant::now() + TIMEOUT;
    // Whoever measured one container after the other would take seconds each time; a machine that has other things to do, too,
    // is slow now and then.
    loop {
        let begun = Instant::now();
        assert_eq!(list(&pod, None).await.len(), MANY);
        let first = begun.elapsed();
        assert_eq!(pod_stats(&pod).await.containers.len(), MANY);
        let second = begun.elapsed() - first;
        if first.max(second) < Duration::from_millis(750) {
            break;
        }
        let slow = format!("{first:?} for the list, {second:?} for the sandbox");
        assert!(Instant::now() < end, "{slow}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    daemon.finish().await.unwrap();
}
