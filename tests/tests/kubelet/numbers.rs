//! What the kubelet says about a node that runs pods: /stats/summary, /metrics/resource, /runningpods, images.

use std::collections::BTreeSet;

use coracle_proto::runtime::v1 as cri;
use serde_json::{Value, json};

use crate::node::{images, node, pod, script, wasm};

/// The entry of a pod in /stats/summary.
fn entry(summary: &Value, name: &str) -> Value {
    let all = summary["pods"].as_array();
    let full = format!("{name}-node1");
    let found = all
        .into_iter()
        .flatten()
        .find(|pod| pod["podRef"]["name"] == full.as_str());
    found.cloned().unwrap_or(Value::Null)
}

/// Whether a pod's entry has what every kubelet can know of it; `written` is how much its container wrote to its root.
fn is_counted(pod: &Value, container: &str, written: u64) -> bool {
    let one = &pod["containers"][0];
    one["name"] == container
        && number(&one["cpu"]["usageCoreNanoSeconds"]) > 0
        && number(&one["memory"]["workingSetBytes"]) > 0
        && number(&one["rootfs"]["usedBytes"]) >= written
        && number(&one["logs"]["capacityBytes"]) > 0
        && number(&pod["memory"]["workingSetBytes"]) > 0
        && number(&pod["ephemeral-storage"]["usedBytes"]) >= written
}

/// Whether it has what a kubelet gets from the runtime alone.
fn has_network_and_processes(pod: &Value) -> bool {
    let network = &pod["network"];
    number(&network["txBytes"]) + number(&network["rxBytes"]) > 0
        && number(&pod["process_stats"]["process_count"]) > 0
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn the_summary_has_numbers_of_every_container_and_pod() {
    let mut node = node(json!({})).await;
    let mut busy = script(
        "busy",
        "dd if=/dev/zero of=/tmp/file bs=1M count=3; while :; do :; done",
    );
    busy["resources"] = json!({"limits": {"cpu": "100m", "memory": "64Mi"}});
    node.put(&pod("linux", &[busy])).unwrap();
    node.put(&pod("wasm", &[wasm("idle", &["sleep", "1000"])]))
        .unwrap();
    let pods = [("linux", "busy", 3 << 20), ("wasm", "idle", 0)];
    for (name, _, _) in pods {
        let seen = node.ready(name).await.unwrap();
        // Nobody listens; the question and the refusal are counted.
        let address = format!("{}:9", seen["status"]["podIP"].as_str().unwrap());
        std::net::TcpStream::connect(address).unwrap_err();
    }
    // By cAdvisor, which knows no networks of runtimes it was not written for; then by CRI alone.
    for from_cri in [false, true] {
        let gates = json!({"featureGates": {"PodAndContainerStatsFromCRI": from_cri}});
        node.restart_kubelet(&gates).await.unwrap();
        let summary = || node.get("/stats/summary").unwrap_or_default();
        for (name, container, written) in pods {
            let found = node.eventually(|| {
                let pod = entry(&summary(), name);
                is_counted(&pod, container, written)
                    && (!from_cri || has_network_and_processes(&pod))
            });
            assert!(
                found.await,
                "{name}, {from_cri}: {:#}",
                entry(&summary(), name)
            );
        }
        let cores = number(&entry(&summary(), "linux")["containers"][0]["cpu"]["usageNanoCores"]);
        assert!((1..200_000_000).contains(&cores), "{cores}");
        let images = summary()["node"]["runtime"]["imageFs"].clone();
        assert!(
            number(&images["capacityBytes"]) > 0 && number(&images["usedBytes"]) > 0,
            "{images}"
        );
    }
    let metrics = node.text("/metrics/resource").unwrap();
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
    ] {
        for container in ["busy", "idle"] {
            let line = format!("{name}{{container=\"{container}\"");
            assert!(metrics.contains(&line), "no {line} in {metrics}");
        }
    }
    node.finish().await.unwrap();
}

/// Names, containers and pods of the samples in `text`, each with a pod; of those of pods the container is empty.
fn sampled(text: &str) -> BTreeSet<(String, String, String)> {
    let samples = text.lines().filter(|line| line.starts_with("container_"));
    let labelled = samples.filter_map(|line| {
        let (name, labels) = line.split_once('{')?;
        let label = |key: &str| {
            let start = format!("{key}=\"");
            let value = labels
                .split(',')
                .find_map(|label| label.strip_prefix(&*start));
            Some(value?.split('"').next()?.to_owned())
        };
        Some((name.to_owned(), label("container")?, label("pod")?))
    });
    labelled.filter(|(_, _, pod)| !pod.is_empty()).collect()
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn with_the_gate_the_kubelet_shows_every_series_of_the_runtime_by_container_and_pod() {
    let gate = json!({"featureGates": {"PodAndContainerStatsFromCRI": true}});
    let mut node = node(gate).await;
    let mut busy = script("busy", "while :; do :; done");
    busy["resources"] = json!({"limits": {"cpu": "100m", "memory": "64Mi"}});
    node.put(&pod("linux", &[busy])).unwrap();
    node.put(&pod("wasm", &[wasm("idle", &["sleep", "1000"])]))
        .unwrap();
    node.ready("linux").await.unwrap();
    node.ready("wasm").await.unwrap();
    let mut runtime = node.daemon().cri().runtime;
    let request = cri::ListPodSandboxMetricsRequest {};
    let reply = runtime.list_pod_sandbox_metrics(request).await.unwrap();
    let own = reply.into_inner().pod_metrics.into_iter().flat_map(|pod| {
        let of_containers = pod
            .container_metrics
            .into_iter()
            .flat_map(|all| all.metrics);
        pod.metrics.into_iter().chain(of_containers)
    });
    // The labels begin with container, id, image, namespace and pod.
    let own: BTreeSet<_> = own
        .filter(|metric| metric.name.starts_with("container_"))
        .map(|metric| {
            let [container, pod] = [0, 4].map(|at| metric.label_values[at].clone());
            (metric.name, container, pod)
        })
        .collect();
    for (container, pod) in [
        ("busy", "linux-node1"),
        ("idle", "wasm-node1"),
        ("", "wasm-node1"),
    ] {
        let of = |found: &&(_, String, String)| found.1 == container && found.2 == pod;
        let count = own.iter().filter(of).count();
        let least = if container.is_empty() { 8 } else { 40 };
        assert!(count >= least, "{count} of {container} in {pod}");
    }
    let shown = sampled(&node.text("/metrics/cadvisor").unwrap());
    let missing: Vec<_> = own.difference(&shown).collect();
    assert!(missing.is_empty(), "{missing:?}");
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn unused_images_are_collected_and_used_ones_are_not() {
    let mut node = node(json!({})).await;
    node.put(&pod("stays", &[wasm("idle", &["sleep", "1000"])]))
        .unwrap();
    node.put(&pod("goes", &[script("idle", "exec sleep 1000")]))
        .unwrap();
    node.ready("stays").await.unwrap();
    node.ready("goes").await.unwrap();
    node.take("goes").unwrap();
    node.wait("goes", "gone", Value::is_null).await.unwrap();
    // The disk is as good as full, says this kubelet: it removes what no container uses.
    let full = json!({
        "evictionHard": {"imagefs.available": "99%"}, "imageMinimumGCAge": "1s", "evictionPressureTransitionPeriod": "1s",
    });
    node.restart_kubelet(&full).await.unwrap();
    let cri = node.daemon().cri();
    let mut left = Vec::new();
    for _ in 0..300 {
        left = cri.list_images().await.unwrap();
        if left.len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let tags: Vec<&String> = left.iter().flat_map(|image| &image.repo_tags).collect();
    assert_eq!(tags, [&images().wasm]);
    let stays = node.ready("stays").await.unwrap();
    assert_eq!(stays["status"]["containerStatuses"][0]["restartCount"], 0);
    node.finish().await.unwrap();
}
