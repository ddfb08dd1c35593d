//! The rules and dashboards that clusters have already find our series: those of kubernetes-mixin, which kube-prometheus ships.
//!
//! The expressions here are ours, with the selectors, groupings and joins of theirs. What they need of other programs
//! (`kube_pod_info` of kube-state-metrics) is made up, and so are the values: it is names and labels that a runtime can get wrong.

use std::process::Command;

use serde_json::{Value, json};

use super::{described, limited, listening, samples, scrape};
use crate::linux::shell;
use crate::site::Pod;

/// What they select containers' series by: kube-prometheus scrapes a kubelet with this job and path.
const JOB: &str = r#"job="kubelet", metrics_path="/metrics/cadvisor""#;
/// A pod's node, by kube-state-metrics.
const NODE: &str = r#"on (namespace, pod) group_left (node)
    topk by (namespace, pod) (1, max by (namespace, pod, node) (kube_pod_info{node!=""}))"#;
/// The block devices that they know.
const DEVICES: [&str; 9] = [
    "mmcblk", "nvme", "rbd", "sd", "vd", "xvd", "dm-", "md", "dasd",
];
const TRAFFIC: [&str; 6] = [
    "container_network_receive_bytes_total",
    "container_network_transmit_bytes_total",
    "container_network_receive_packets_total",
    "container_network_transmit_packets_total",
    "container_network_receive_packets_dropped_total",
    "container_network_transmit_packets_dropped_total",
];
const DISK: [&str; 4] = [
    "container_fs_reads_total",
    "container_fs_writes_total",
    "container_fs_reads_bytes_total",
    "container_fs_writes_bytes_total",
];

/// Each expression, and by how many containers or pods it has to have a value: two containers in two pods, one of them with
/// a limit of its CPU time.
fn expressions() -> Vec<(String, u32)> {
    let mut all = vec![(
        format!(
            "sum by (namespace, pod, container) (rate(container_cpu_usage_seconds_total{{{JOB}, image!=\"\"}}[5m])) * {NODE}"
        ),
        2,
    )];
    for name in ["working_set_bytes", "rss", "cache", "swap"] {
        let name = format!("container_memory_{name}{{{JOB}, image!=\"\"}}");
        all.push((format!("{name} * {NODE}"), 2));
        let shown = "max by (namespace, pod, container)";
        all.push((format!("sum by (container) ({shown} ({name}))"), 2));
    }
    let throttled = |name: &str| {
        format!(
            "sum (increase(container_cpu_cfs_{name}_total{{{JOB}, container!=\"\"}}[5m])) without (id, metrics_path, image, job)"
        )
    };
    let (part, whole) = (throttled("throttled_periods"), throttled("periods"));
    all.push((format!("{part} / {whole}"), 2));
    for name in TRAFFIC {
        let rate = format!("rate({name}{{{JOB}, namespace=~\".+\", pod=~\".+\"}}[5m])");
        all.push((format!("sum by (namespace, pod) ({rate})"), 2));
    }
    all
}

/// `series` as Prometheus has it after a scrape of that job, with values that grow.
fn ingested(series: &str) -> Value {
    let (name, labels) = series.split_once('{').unwrap();
    let series = format!("{name}{{{JOB}, {labels}");
    json!({"series": series, "values": "1+1x20"})
}

#[tokio::test]
async fn the_rules_and_dashboards_of_kube_prometheus_find_what_they_select() {
    let daemon = listening().await;
    let wasm = Pod::run(&daemon, "wasm").await;
    wasm.start(&limited("limited", &["sleep"])).await;
    let base = &shell::images().base.reference;
    daemon.cri().pull(base).await.unwrap();
    let linux = Pod::run(&daemon, "linux").await;
    let writes = "dd if=/dev/zero of=/file bs=1M count=2 conv=fsync; exec sleep 600";
    linux.start(&shell::sh("writer", writes)).await;
    let text = scrape(&daemon, "/metrics/cadvisor");
    // Without traffic on the disk there is no sample, but a description.
    let described = described(&wasm).await;
    for name in DISK {
        let labels = &described[name].label_keys;
        for label in ["namespace", "pod", "container", "device"] {
            assert!(labels.iter().any(|known| known == label), "{name} {label}");
        }
    }
    for (name, labels, _) in samples(&text) {
        let device = labels.split_once("device=\"").map(|(_, device)| device);
        let Some(device) = device.filter(|_| DISK.contains(&name)) else {
            continue;
        };
        let device = device.split('"').next().unwrap();
        let device = device.strip_prefix("/dev/").unwrap_or(device);
        let is_known = DEVICES.iter().any(|kind| device.starts_with(kind));
        let has_no_name = device.contains(':') || device.starts_with("loop");
        assert!(is_known || has_no_name, "{device} of {name}");
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut series: Vec<Value> = lines
        .map(|line| ingested(line.rsplit_once(' ').unwrap().0))
        .collect();
    for pod in [&wasm, &linux] {
        let names = pod.config.metadata.as_ref().unwrap();
        let (namespace, name) = (&names.namespace, &names.name);
        let info =
            format!("kube_pod_info{{namespace=\"{namespace}\", pod=\"{name}\", node=\"n1\"}}");
        series.push(json!({"series": info, "values": "1x20"}));
    }
    evaluate(&daemon.scratch().dir().join("mixin.json"), &series);
    daemon.finish().await.unwrap();
}

/// Has Prometheus' own tool evaluate the expressions, if it is installed (Debian's `prometheus`).
fn evaluate(file: &std::path::Path, series: &[Value]) {
    let tool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    if Command::new(&tool).arg("--version").output().is_err() {
        return;
    }
    let wanted = expressions().into_iter().map(|(expression, count)| {
        let samples = json!([{"labels": "{}", "value": count}]);
        json!({"expr": format!("count({expression})"), "eval_time": "10m", "exp_samples": samples})
    });
    let test = json!({
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": wanted.collect::<Vec<_>>()}],
    });
    std::fs::write(file, test.to_string()).unwrap();
    let mut run = Command::new(&tool);
    let output = run.args(["test", "rules"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    std::fs::remove_file(file).unwrap();
}
