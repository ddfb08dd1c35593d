//! Metrics: the CRI calls and the listener.

mod amounts;
mod counts;
mod examples;
mod mixin;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::procs::Role;
use rustix::process::{Pid, Signal, kill_process};

use crate::functions::{self, functions_with, idle};
use crate::linux::shell;
use crate::site::{Pod, daemon_with, eventually, tool};

const BASE: [&str; 5] = ["container", "id", "image", "namespace", "pod"];
/// Series without samples where a kernel or a node has nothing to say of them.
const MAY_LACK_SAMPLES: [&str; 9] = [
    // Of functions alone that may sleep.
    "coracle_function_",
    "container_hugetlb",
    "container_pressure",
    "container_fs_reads",
    "container_fs_writes",
    "container_blkio",
    "container_ulimits_soft",
    "container_spec_cpu_quota",
    // From Linux 5.19 on.
    "container_memory_max_usage_bytes",
];

pub async fn listening() -> Daemon {
    daemon_with(Options {
        config: "[metrics]\naddress = \"127.0.0.1:0\"\n".into(),
        ..Options::default()
    })
    .await
}

/// The address that the daemon says it serves metrics on.
pub fn address(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rfind(|line| line.contains("serving metrics"));
    let (_, address) = line.unwrap().split_once("address=").unwrap();
    address.trim().to_owned()
}

/// The head and the body of the answer to `request` of HTTP/1.0, which is not sent in parts.
pub fn exchange(daemon: &Daemon, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address(daemon)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    write!(stream, "{request}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

pub fn scrape(daemon: &Daemon, path: &str) -> String {
    let (head, body) = exchange(daemon, &format!("GET {path} HTTP/1.0"));
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    body
}

/// The samples of a text: name, text between the braces, value.
fn samples(text: &str) -> Vec<(&str, &str, f64)> {
    let sample = |line| {
        let (series, value) = str::rsplit_once(line, ' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap();
        (name, labels, value.parse().unwrap())
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(sample).collect()
}

pub fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let fits = |(found, of, _): &&(&str, &str, f64)| {
        *found == name && labels.iter().all(|label| of.contains(label))
    };
    let all = samples(text);
    let found: Vec<_> = all.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].2
}

async fn described(pod: &Pod) -> BTreeMap<String, cri::MetricDescriptor> {
    let request = cri::ListMetricDescriptorsRequest {};
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.list_metric_descriptors(request).await;
    let descriptors = reply.unwrap().into_inner().descriptors;
    let count = descriptors.len();
    let by_name: BTreeMap<_, _> = descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name.clone(), descriptor))
        .collect();
    assert_eq!(by_name.len(), count, "a name is described twice");
    by_name
}

async fn measured(pod: &Pod) -> Vec<cri::PodSandboxMetrics> {
    let request = cri::ListPodSandboxMetricsRequest {};
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.list_pod_sandbox_metrics(request).await;
    reply.unwrap().into_inner().pod_metrics
}

/// The multi-verb guest with every limit that has a series.
fn limited(name: &str, args: &[&str]) -> cri::ContainerConfig {
    let mut config = container(name, tool(), args);
    let linux = config.linux.as_mut().unwrap();
    let resources = linux.resources.as_mut().unwrap();
    resources.memory_limit_in_bytes = 128 << 20;
    (resources.cpu_period, resources.cpu_quota) = (100_000, 50_000);
    resources.cpu_shares = 512;
    config
}

#[tokio::test]
async fn every_described_series_has_samples_that_fit_it() {
    let daemon = listening().await;
    let pod = Pod::run(&daemon, "described").await;
    let id = pod.start(&limited("limited", &["sleep"])).await;
    let created = pod
        .create(&container("created", tool(), &["sleep"]))
        .await
        .unwrap();
    let described = described(&pod).await;
    for descriptor in described.values() {
        assert!(!descriptor.help.is_empty(), "{}", descriptor.name);
        assert_eq!(descriptor.label_keys[..5], BASE, "{}", descriptor.name);
    }
    let all = measured(&pod).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].pod_sandbox_id, pod.id);
    let containers = &all[0].container_metrics;
    assert_eq!(containers.len(), 1, "{created} does not run");
    assert_eq!(containers[0].container_id, id);
    let mut seen = BTreeSet::new();
    let mut series = BTreeSet::new();
    for metric in all[0].metrics.iter().chain(&containers[0].metrics) {
        let descriptor = described.get(&metric.name).expect(&metric.name);
        let labels = &metric.label_values;
        assert_eq!(labels.len(), descriptor.label_keys.len(), "{}", metric.name);
        let is_pods = metric.name.starts_with("container_network_");
        let (name, own, image) = match is_pods {
            true => ("", &pod.id, ""),
            false => ("limited", &id, tool()),
        };
        let namespace = &pod.config.metadata.as_ref().unwrap().namespace;
        assert_eq!(
            labels[..5],
            [name, own, image, namespace, "described"],
            "{}",
            metric.name
        );
        assert!(
            metric.value.is_some() && metric.timestamp == 0,
            "{}",
            metric.name
        );
        assert!(
            series.insert((&metric.name, labels)),
            "{} twice",
            metric.name
        );
        seen.insert(metric.name.as_str());
    }
    let missing = described
        .keys()
        .map(String::as_str)
        .filter(|name| !seen.contains(name));
    let wrong: Vec<_> = missing
        .filter(|name| {
            !MAY_LACK_SAMPLES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .collect();
    assert_eq!(wrong, [""; 0]);
    let request = cri::StreamPodSandboxMetricsRequest {};
    let stream = pod
        .cri
        .runtime
        .clone()
        .stream_pod_sandbox_metrics(request)
        .await;
    let mut stream = stream.unwrap().into_inner();
    let mut streamed = 0;
    while let Some(message) = stream.message().await.unwrap() {
        for pod in message.pod_sandbox_metrics {
            streamed += pod.metrics.len() + pod.container_metrics[0].metrics.len();
        }
    }
    assert_eq!(streamed, series.len());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_scrape_shows_what_both_kinds_of_containers_use() {
    let daemon = listening().await;
    let pod = Pod::run(&daemon, "scraped").await;
    pod.start(&container("burn", tool(), &["spin"])).await;
    pod.start(&limited("grow", &["grow", "64"])).await;
    pod.wait_log(&daemon, "grow", "touched 64 MiB").await;
    let linux = &shell::images().base.reference;
    daemon.cri().pull(linux).await.unwrap();
    let linux_pod = Pod::run(&daemon, "shell").await;
    linux_pod
        .start(&container("sleep", linux, &["sleep", "600"]))
        .await;
    let burnt = |text: &str| {
        value(
            text,
            "container_cpu_usage_seconds_total",
            &["container=\"burn\""],
        )
    };
    // Shared for a second, in which a slow machine does not ask twice.
    let first = loop {
        let begun = Instant::now();
        let first = scrape(&daemon, "/metrics/cadvisor");
        if burnt(&first) == burnt(&scrape(&daemon, "/metrics/cadvisor")) {
            break first;
        }
        assert!(
            begun.elapsed() >= Duration::from_secs(1),
            "it is not shared"
        );
    };
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let text = scrape(&daemon, "/metrics/cadvisor");
    let more = burnt(&text) - burnt(&first);
    assert!(more > 0.05 && more.fract() != 0.0, "{more}");
    let grown = &["container=\"grow\"", "pod=\"scraped\""];
    let working_set = value(&text, "container_memory_working_set_bytes", grown);
    assert!(working_set > f64::from(64 << 20), "{working_set}");
    let limit = value(&text, "container_spec_memory_limit_bytes", grown);
    assert_eq!(limit, f64::from(128 << 20));
    let shell = &["container=\"sleep\"", "pod=\"shell\"", linux.as_str()];
    assert_eq!(value(&text, "container_processes", shell), 1.0);
    assert!(value(&text, "container_file_descriptors", shell) >= 3.0);
    let traffic = &[
        "pod=\"shell\"",
        "interface=\"eth0\"",
        "container=\"\"",
        "image=\"\"",
    ];
    value(&text, "container_network_receive_bytes_total", traffic);
    let (head, text) = exchange(
        &daemon,
        "GET /metrics/cadvisor HTTP/1.0\r\nAccept: application/openmetrics-text;version=1.0.0",
    );
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(text.ends_with("# EOF\n"), "it was cut");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn wakes_of_functions_are_counted_and_timed_also_over_a_restart() {
    let (mut daemon, image) = functions_with(
        "[metrics]\naddress = \"127.0.0.1:0\"\n[handlers.coracle.http]\nidle_s = 1\n",
    )
    .await;
    let pod = Pod::run(&daemon, "woken").await;
    let function = functions::start(pod, &container("function", &image, &[]), 8080).await;
    function.pod.start(&limited("other", &["sleep"])).await;
    let of = &["pod=\"woken\"", "container=\"function\"", image.as_str()];
    let counted = |text: &str| {
        let samples = samples(text);
        let names = samples.iter().map(|(name, ..)| *name);
        let found = names.filter(|name| name.starts_with("coracle_function_"));
        assert_eq!(found.count(), 2, "only a function has them");
        let wakes = value(text, "coracle_function_wakes_total", of);
        (
            wakes,
            value(text, "coracle_function_wake_seconds_total", of),
        )
    };
    assert_eq!(counted(&scrape(&daemon, "/metrics/cadvisor")), (0.0, 0.0));
    for round in 1..3 {
        idle::asleep(&daemon, &function).await;
        let begun = Instant::now();
        assert_eq!(function.get("/hello").0, 200);
        let took = begun.elapsed().as_secs_f64();
        eventually("it is timed", || idle::wakes(&daemon, &function).0 == round).await;
        daemon.restart().await.unwrap();
        let (wakes, seconds) = counted(&scrape(&daemon, "/metrics/cadvisor"));
        assert_eq!(wakes, round as f64);
        assert!(
            seconds > 0.0005 * wakes && seconds < took + 60.0,
            "{seconds} {took}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_daemon_counts_calls_and_ends_and_refuses_what_is_not_a_scrape() {
    let mut daemon = listening().await;
    let pod = Pod::run(&daemon, "counted").await;
    let (_, _) = pod
        .finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    pod.tool(&["sleep"]).await;
    pod.cri.status(&"f".repeat(64)).await.unwrap_err();
    let text = scrape(&daemon, "/metrics");
    for (name, labels, least) in [
        (
            "coracle_cri_requests_total",
            &["rpc=\"RunPodSandbox\"", "code=\"OK\""] as &[_],
            1.0,
        ),
        (
            "coracle_cri_requests_total",
            &["rpc=\"ContainerStatus\"", "code=\"NotFound\""],
            1.0,
        ),
        (
            "coracle_cri_request_duration_seconds_count",
            &["rpc=\"StartContainer\""],
            2.0,
        ),
        (
            "coracle_sandboxes",
            &["state=\"ready\"", "handler=\"coracle\""],
            1.0,
        ),
        (
            "coracle_containers",
            &["state=\"running\"", "kind=\"wasm\""],
            1.0,
        ),
        (
            "coracle_containers",
            &["state=\"exited\"", "kind=\"wasm\""],
            1.0,
        ),
        (
            "coracle_container_exits_total",
            &["kind=\"wasm\"", "reason=\"Completed\""],
            1.0,
        ),
        ("coracle_image_pulls_total", &["result=\"ok\""], 1.0),
        ("coracle_images", &[], 1.0),
        ("process_resident_memory_bytes", &[], 1e6),
        ("coracle_build_info", &["version="], 1.0),
    ] {
        let found = value(&text, name, labels);
        assert!(found >= least, "{name}{labels:?} is {found}");
    }
    for (request, answer) in [
        ("POST /metrics HTTP/1.0", "405 "),
        ("GET /metrics/ HTTP/1.0", "404 "),
        ("GET /other HTTP/1.0", "404 "),
        ("HELP", "400 "),
    ] {
        let (head, _) = exchange(&daemon, request);
        assert!(head.contains(answer), "{request}: {head}");
    }
    // Clients that send nothing keep nobody else out.
    let silent: Vec<_> = (0..12)
        .map(|_| TcpStream::connect(address(&daemon)).unwrap())
        .collect();
    scrape(&daemon, "/metrics");
    drop(silent);
    daemon.restart().await.unwrap();
    let text = scrape(&daemon, "/metrics");
    value(
        &text,
        "coracle_containers",
        &["state=\"running\"", "kind=\"wasm\""],
    );
    daemon.finish().await.unwrap();
}
