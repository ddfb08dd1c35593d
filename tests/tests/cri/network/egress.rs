//! Egress lists as nftables enforces them on any process of a pod; `sockets` tests those of WebAssembly's host functions.

use coracle_tests::daemon::{Daemon, Options};
use tonic::Code;

use super::outside::{Greeter, Outside, fetch};
use super::{addresses, cri, free_ports, held, mapping, web};
use crate::linux::shell::{daemon, daemon_with, fresh, on_peer, pod_security, run, sh};
use crate::site::{Pod, refused};

const METADATA: &str = "169.254.169.254";

/// A pod's configuration that lists what it may reach.
fn listing(daemon: &Daemon, name: &str, allow: &str) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    let key = "egress.coracle.dev/allow".to_owned();
    config.annotations.insert(key, allow.to_owned());
    config
}

/// Holds the pod to reaching `targets`, `ADDRESS:PORT`, or to not reaching them, and to knowing that soon.
async fn reaches(daemon: &Daemon, pod: &Pod, targets: &[String], expected: &str) {
    let tries: Vec<String> = targets
        .iter()
        .map(|target| format!("wget -q -O - http://{target}/ 2>/dev/null || echo no"))
        .collect();
    let config = held(&fresh("c"), &tries.join("; "));
    let output = run(daemon, pod, &config).await.ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, vec![expected; targets.len()], "{targets:?}");
}

#[tokio::test]
async fn a_pod_reaches_what_it_lists_and_answers_who_calls() {
    if on_peer() {
        return; // It has no such lists.
    }
    let daemon = daemon().await;
    let world = Outside::new(&daemon);
    world.serve(80);
    world.serve(81);
    world.also(METADATA);
    let own = world.own();
    let open = Pod::run(&daemon, "open").await;
    let all = [
        format!("{own}:80"),
        format!("{own}:81"),
        format!("{METADATA}:80"),
    ];
    reaches(&daemon, &open, &all, "outside").await;
    let mut config = listing(
        &daemon,
        "listing",
        &format!("{own}/32:80,{METADATA},0.0.0.0/0:82"),
    );
    let port = free_ports(&daemon);
    config.port_mappings = vec![mapping(port, "")];
    let pod = web(&daemon, config).await;
    reaches(&daemon, &pod, &all[..1], "outside").await;
    reaches(&daemon, &pod, &all[1..], "no").await;
    // Whoever calls is answered: a probe, a host port, itself.
    let ip = addresses(&pod).await.remove(0);
    assert_eq!(fetch(&format!("{ip}:80")).as_deref(), Some("listing"));
    assert_eq!(
        fetch(&format!("127.0.0.1:{port}")).as_deref(),
        Some("listing")
    );
    let node = format!("{}:{port}", world.node());
    assert_eq!(world.fetch(&node).as_deref(), Some("listing"));
    reaches(
        &daemon,
        &pod,
        &["127.0.0.1:80".to_owned(), format!("{ip}:80")],
        "listing",
    )
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_nodes_own_ports_stay_shut_whatever_is_listed() {
    if on_peer() {
        return; // It has no such lists.
    }
    let options = Options {
        network: "denied_node_ports = [9443]".to_owned(),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let world = Outside::new(&daemon);
    // Stands in for the API server, at an address of the node that only this test has.
    let api = [6443, 9443].map(|port| Greeter::listen(&world.node(), port));
    let config = listing(&daemon, "all", "0.0.0.0/0, ::/0");
    let pod = Pod::run_config(&daemon, config).await;
    let open = Pod::run(&daemon, "open").await;
    for port in [6443, 9443] {
        let ask = format!("nc -w 20 {} {port} </dev/null || echo shut", world.node());
        for (pod, expected) in [(&open, "open"), (&pod, "shut")] {
            let client = held(&fresh("c"), &ask);
            run(&daemon, pod, &client).await.says(&[expected]);
        }
    }
    // Nor at an address that the node gets while the pod runs, for any daemon.
    let later = world.node_gets();
    let api = (api, [6443, 9443].map(|port| Greeter::listen(&later, port)));
    let mut daemon = daemon;
    for _ in 0..2 {
        for port in [6443, 9443] {
            let ask = format!("nc -w 20 {later} {port} </dev/null || echo shut");
            for (pod, expected) in [(&open, "open"), (&pod, "shut")] {
                let client = held(&fresh("c"), &ask);
                run(&daemon, pod, &client).await.says(&[expected]);
            }
        }
        daemon.kill();
        daemon.restart().await.unwrap();
    }
    drop(api);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lists_that_nothing_could_hold_are_refused() {
    if on_peer() {
        return; // It has no such lists.
    }
    let daemon = daemon().await;
    let mut config = listing(&daemon, "on-the-node", "203.0.113.1");
    let options = &mut pod_security(&mut config).namespace_options;
    options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    let cri = daemon.cri();
    refused(
        cri.run_pod(&config).await,
        Code::InvalidArgument,
        &["the node's network"],
    );
    let named = Pod::run_config(&daemon, listing(&daemon, "named", "api.example.com")).await;
    refused(
        named.create(&held("c", "true")).await,
        Code::InvalidArgument,
        &["by name", "Linux"],
    );
    let listed = Pod::run_config(&daemon, listing(&daemon, "listed", "203.0.113.1")).await;
    refused(
        listed.create(&sh("raw", "true")).await,
        Code::InvalidArgument,
        &["NET_RAW", "drop"],
    );
    listed.create(&held("held", "true")).await.unwrap();
    daemon.finish().await.unwrap();
}
