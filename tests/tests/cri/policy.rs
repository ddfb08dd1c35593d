//! Annotations: none allows anything that the operator's configuration of the handler does not.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{Daemon, Options};
use tonic::Code;

use crate::linux::shell::{self, fresh, on_peer, run, security, sh};
use crate::site::{Pod, daemon, daemon_with, refused};
use crate::sockets::{ip, net, net_daemon_with, pod_with, server};

const ALLOW: &str = "egress.coracle.dev/allow";

/// A pod's configuration in a Kubernetes namespace, with an egress list if it brings one.
fn config(
    daemon: &Daemon,
    name: &str,
    namespace: &str,
    allow: Option<&str>,
) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    config.metadata.as_mut().unwrap().namespace = namespace.to_owned();
    let allow = allow.map(|allow| (ALLOW.to_owned(), allow.to_owned()));
    config.annotations.extend(allow);
    config
}

/// What is done to a daemon's configuration file between two starts.
fn reconfigure(daemon: &Daemon, from: &str, to: &str) {
    let path = daemon.config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

/// Whether the pod's guests reach `ports` of `target`, `+` or `-` each.
async fn reached(daemon: &Daemon, pod: &Pod, image: &str, target: &str, ports: &[&str]) -> String {
    let mut found = String::new();
    for port in ports {
        let output = net(daemon, pod, image, &["tcp-connect", target, port, "x"]).await;
        match output.0 {
            0 => found.push('+'),
            _ => {
                assert!(output.2.contains("access-denied"), "{output:?}");
                found.push('-');
            }
        }
    }
    found
}

#[tokio::test]
async fn a_pod_opens_nothing_for_itself_by_annotation() {
    if on_peer() {
        return; // It has no such annotations.
    }
    let daemon = daemon().await;
    let cri = daemon.cri();
    for allow in [
        "203.0.113.1",
        "0.0.0.0/0,::/0",
        "api.example.com:443",
        "127.0.0.1",
    ] {
        let config = config(&daemon, "wants", "default", Some(allow));
        let run = cri.run_pod_with(&config, "coracle-strict").await;
        let setting = "handlers.coracle-strict.egress";
        refused(
            run,
            Code::InvalidArgument,
            &[ALLOW, "\"coracle-strict\"", setting],
        );
    }
    for (key, value) in [
        ("cni.coracle.dev/ips", "10.1.2.3/24"),
        ("cni.coracle.dev/mac", "02:00:5e:00:53:01"),
    ] {
        for handler in ["", "coracle", "coracle-wasm", "coracle-strict"] {
            let mut config = daemon.pod("wants");
            config.annotations.insert(key.into(), value.into());
            let name = if handler.is_empty() {
                "coracle"
            } else {
                handler
            };
            let setting = format!("handlers.{name}.annotations");
            let run = cri.run_pod_with(&config, handler).await;
            refused(run, Code::InvalidArgument, &[key, &setting]);
        }
    }
    // Nothing of the refused ones is left, and a list of nothing takes nothing but is no reason to refuse.
    daemon.expect_no_leak().await.unwrap();
    let empty = config(&daemon, "empty", "default", Some(""));
    cri.run_pod_with(&empty, "coracle-strict").await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_operators_list_decides_by_handler_and_namespace_and_a_pod_only_narrows_it() {
    if on_peer() {
        return; // It has no such lists.
    }
    let (daemon, image) = net_daemon_with(
        "[handlers.coracle-strict]\negress = [\"10.0.0.0/8:8080\"]\nnamespaces = [\n\
         \x20 { namespace = \"team-shut\", egress = \"none\" },\n\
         \x20 { namespace = \"team-*\", egress = [\"10.0.0.0/9\", \"10.128.0.0/9\"] },\n\
         \x20 { namespace = \"free\", annotations = [\"egress.coracle.dev/allow\"] },\n]\n",
    )
    .await;
    let other = Pod::run(&daemon, "target").await;
    let target = ip(&other).await.to_string();
    let ports = ["8080", "8081"];
    for port in ports {
        server(&daemon, &other, &image, &["tcp-serve", port]).await;
    }
    let narrow = format!("{target}:8081");
    let wide = format!("{target},10.0.0.0/8");
    let cases = [
        ("default", None, "+-"),
        ("default", Some("10.0.0.0/8:8080"), "+-"),
        ("default", Some("10.255.255.0/24:8080"), "--"),
        ("team-shut", None, "--"),
        ("team-shut", Some(""), "--"),
        ("team-a", None, "++"),
        ("team-a", Some(narrow.as_str()), "-+"),
        // Two networks of the operator's make up what it lists.
        ("team-a", Some(wide.as_str()), "++"),
        ("free", None, "+-"),
        ("free", Some(narrow.as_str()), "-+"),
    ];
    for (namespace, allow, expected) in cases {
        let config = config(&daemon, &fresh("pod"), namespace, allow);
        let pod = pod_with(&daemon, config, "coracle-strict").await;
        let found = reached(&daemon, &pod, &image, &target, &ports).await;
        assert_eq!(found, expected, "{namespace} {allow:?}");
    }
    for (namespace, allow, named) in [
        ("default", narrow.as_str(), "handlers.coracle-strict.egress"),
        ("default", "10.0.0.0/8", "10.0.0.0/8"),
        ("default", "10.0.0.0/7:8080", "10.0.0.0/7:8080"),
        ("default", "api.example.com:8080", "api.example.com:8080"),
        ("team-shut", narrow.as_str(), "\"team-shut\""),
        ("team-a", "0.0.0.0/0", "egress of \"team-*\""),
    ] {
        let config = config(&daemon, "wider", namespace, Some(allow));
        let run = daemon.cri().run_pod_with(&config, "coracle-strict").await;
        refused(run, Code::InvalidArgument, &[ALLOW, named]);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_linux_pod_is_held_to_the_operators_list_without_asking_for_one() {
    if on_peer() {
        return; // It has no such lists.
    }
    let options = Options {
        config:
            "[[handlers.coracle.namespaces]]\nnamespace = \"held\"\negress = [\"10.0.0.0/8:81\"]\n"
                .to_owned(),
        ..Options::default()
    };
    let daemon = shell::daemon_with(options).await;
    let target = Pod::run(&daemon, "target").await;
    let at = ip(&target).await;
    let mut web = sh(
        "web",
        "httpd -p 80; httpd -p 81; echo ready; exec sleep 1000",
    );
    security(&mut web).run_as_user = Some(cri::Int64Value { value: 0 });
    target.start(&web).await;
    target.wait_log(&daemon, "web", "ready").await;
    let held = Pod::run_config(&daemon, config(&daemon, "held", "held", None)).await;
    let free = Pod::run(&daemon, "free").await;
    for (pod, expected) in [
        (&free, ["80 open", "81 open"]),
        (&held, ["80 shut", "81 open"]),
    ] {
        let script = format!(
            "for port in 80 81; do is=shut; nc -w 20 {at} $port </dev/null && is=open; echo $port $is; done"
        );
        let mut client = sh(&fresh("c"), &script);
        security(&mut client).capabilities = Some(cri::Capability {
            drop_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
        run(&daemon, pod, &client).await.says(&expected);
    }
    refused(
        held.create(&sh("raw", "true")).await,
        Code::InvalidArgument,
        &["NET_RAW", "drop"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_running_pod_keeps_what_was_decided_when_the_configuration_changes() {
    if on_peer() {
        return; // It has no such lists.
    }
    let before = "egress = [\"10.0.0.0/8:8080\"]";
    let (mut daemon, image) =
        net_daemon_with(&format!("[handlers.coracle-strict]\n{before}\n")).await;
    let other = Pod::run(&daemon, "target").await;
    let target = ip(&other).await.to_string();
    let ports = ["8080", "8081"];
    for port in ports {
        server(&daemon, &other, &image, &["tcp-serve", port]).await;
    }
    let old = pod_with(&daemon, daemon.pod("old"), "coracle-strict").await;
    for (from, to, new) in [
        (before, "egress = [\"10.0.0.0/8\"]", "++"),
        ("egress = [\"10.0.0.0/8\"]", "egress = \"none\"", "--"),
    ] {
        reconfigure(&daemon, from, to);
        daemon.restart().await.unwrap();
        // The same request again is the pod that is there, not another one.
        let again = daemon
            .cri()
            .run_pod_with(&old.config, "coracle-strict")
            .await;
        assert_eq!(again.unwrap(), old.id);
        let found = reached(&daemon, &old, &image, &target, &ports).await;
        assert_eq!(found, "+-", "the old pod under {to}");
        let pod = pod_with(&daemon, daemon.pod(&fresh("new")), "coracle-strict").await;
        let found = reached(&daemon, &pod, &image, &target, &ports).await;
        assert_eq!(found, new, "a new pod under {to}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn device_annotations_of_containers_are_the_operators_to_refuse() {
    if on_peer() {
        return; // It has no such setting.
    }
    for (config, expected) in [
        ("", &["vendor.example/none=0"][..]),
        (
            "[handlers.coracle]\nannotations = []\n",
            &["cdi.k8s.io/plugin", "handlers.coracle.annotations"],
        ),
    ] {
        let options = Options {
            config: config.to_owned(),
            ..Options::default()
        };
        let daemon = daemon_with(options).await;
        let pod = Pod::run(&daemon, "devices").await;
        let mut container = coracle_tests::client::container("c", crate::site::tool(), &["hello"]);
        let annotation = (
            "cdi.k8s.io/plugin".to_owned(),
            "vendor.example/none=0".to_owned(),
        );
        container.annotations.extend([annotation]);
        let refusal = pod.create(&container).await.unwrap_err();
        if !expected[0].starts_with("vendor") {
            refused(Err::<(), _>(refusal), Code::InvalidArgument, expected);
        } else {
            // Honoured: a Wasm container has no devices, and that is why it is refused.
            assert!(refusal.message().contains("devices"), "{refusal}");
        }
        daemon.finish().await.unwrap();
    }
}
