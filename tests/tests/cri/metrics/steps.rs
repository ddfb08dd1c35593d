//! Steps of starts, networks, keepers and images in the daemon's own series.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use coracle_tests::client::container;

use super::{address, exchange, listening, scrape, value};
use crate::linux::shell;
use crate::site::{Pod, eventually, tool};

#[tokio::test]
async fn steps_of_starts_operations_on_networks_and_layers_are_counted() {
    let daemon = listening().await;
    let linux = &shell::images().base.reference;
    daemon.cri().pull(linux).await.unwrap();
    let pod = Pod::run(&daemon, "stepwise").await;
    pod.tool(&["sleep"]).await;
    let text = scrape(&daemon, "/metrics");
    let count = |name: &str, labels: &[&str]| value(&text, name, labels);
    let handler = "handler=\"coracle\"";
    let sandbox = "coracle_sandbox_start_duration_seconds";
    let whole = ["phase=\"total\"", handler];
    assert_eq!(count(&format!("{sandbox}_count"), &whole), 1.0);
    let whole = count(&format!("{sandbox}_sum"), &whole);
    for phase in ["network", "keeper"] {
        let labels = [&*format!("phase=\"{phase}\""), handler];
        assert_eq!(count(&format!("{sandbox}_count"), &labels), 1.0, "{phase}");
        let took = count(&format!("{sandbox}_sum"), &labels);
        assert!(took > 0.0 && took < whole, "{phase} {took} of {whole}");
    }
    let container = "coracle_container_start_duration_seconds_count";
    for phase in ["prepare", "spawn", "total"] {
        let phase = format!("phase=\"{phase}\"");
        assert_eq!(count(container, &[&phase, "kind=\"wasm\""]), 1.0, "{phase}");
    }
    let compiled = "coracle_compilation_duration_seconds_count";
    assert_eq!(count(compiled, &["result=\"ok\""]), 1.0);
    let refused = "coracle_compile_cache_requests_total";
    assert_eq!(count(refused, &["result=\"refused\""]), 0.0);
    let fetched = count("coracle_image_layers_total", &["source=\"fetched\""]);
    assert!(fetched >= 1.0, "{fetched}");
    let unpacked = count("coracle_image_unpack_duration_seconds_count", &[]);
    assert_eq!(unpacked, fetched);
    let received = "coracle_image_received_bytes_total";
    assert!(count(received, &["source=\"registry\""]) > 1000.0);
    assert_eq!(count(received, &["source=\"mirror\""]), 0.0);
    assert_eq!(count("coracle_image_pulls_in_flight", &[]), 0.0);
    let build = ["commit=\"", "engine=\""];
    let line = text
        .lines()
        .find(|line| line.starts_with("coracle_build_info"));
    assert!(
        build.iter().all(|label| line.unwrap().contains(label)),
        "{line:?}"
    );
    let network = |text: &str| {
        let of = |op: &str| {
            let (op, name) = (format!("op=\"{op}\""), "coracle_network_operations_total");
            let labels = [&*op, "provider=\"builtin\"", "result=\"ok\""];
            let has_some = text
                .lines()
                .any(|line| line.starts_with(name) && line.contains(&op));
            if has_some {
                value(text, name, &labels)
            } else {
                0.0
            }
        };
        let of_v4 = |state: &str| {
            let state = format!("state=\"{state}\"");
            value(
                text,
                "coracle_network_addresses",
                &["family=\"ipv4\"", &state],
            )
        };
        let keepers = value(text, "coracle_keepers", &["build=\"own\""]);
        (of("add"), of("del"), of_v4("used"), of_v4("free"), keepers)
    };
    let (added, deleted, used, free, keepers) = network(&text);
    assert_eq!((added, deleted, used, keepers), (1.0, 0.0, 1.0, 1.0));
    assert_eq!(count("coracle_keepers", &["build=\"older\""]), 0.0);
    pod.cri.remove_all_pods().await.unwrap();
    let text = scrape(&daemon, "/metrics");
    assert_eq!(network(&text), (1.0, 1.0, 0.0, free + 1.0, 0.0));
    daemon.finish().await.unwrap();
}

/// A client that has read the first bytes of its answer and reads no more.
fn stalled(address: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics/cadvisor HTTP/1.0\r\n\r\n").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    (stream, String::from_utf8(status.to_vec()).unwrap())
}

#[tokio::test]
async fn clients_that_read_nothing_hold_few_measurements_and_only_as_long_as_they_stay() {
    let daemon = listening().await;
    let pod = Pod::run(&daemon, "many").await;
    // More text than the kernel's buffers of a connection hold.
    for number in 0..40 {
        let name = format!("container-number-{number}");
        pod.start(&container(&name, tool(), &["sleep"])).await;
    }
    let text = scrape(&daemon, "/metrics/cadvisor");
    assert!(text.len() > 320 << 10, "{}", text.len());
    let address = address(&daemon);
    let mut held = Vec::new();
    for number in 0..3 {
        // The one before is not shared any more.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        let (stream, status) = stalled(&address);
        assert_eq!(status, "HTTP/1.0 200", "{number}");
        held.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(1300)).await;
    for _ in 0..8 {
        let (head, body) = exchange(&daemon, "GET /metrics/cadvisor HTTP/1.0");
        assert!(head.starts_with("HTTP/1.0 503 "), "{head}");
        assert!(body.contains("3 scrapes of containers"), "{body}");
    }
    // What is not of containers does not count.
    scrape(&daemon, "/metrics");
    held.pop();
    eventually("there is room again", || {
        let (head, _) = exchange(&daemon, "GET /metrics/cadvisor HTTP/1.0");
        head.starts_with("HTTP/1.0 200 ")
    })
    .await;
    drop(held);
    daemon.finish().await.unwrap();
}
