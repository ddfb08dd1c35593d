//! NetworkReady, changed configurations, and the switch between plugins and the built-in network.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::TIMEOUT;
use coracle_tests::cni::condition;
use coracle_tests::daemon::Daemon;
use serde_json::json;
use tonic::Code;

use super::{daemon, end, scripted};
use crate::linux::shell::pod_security;
use crate::site::{Pod, refused};

/// Waits until the message of NetworkReady holds these words; `None` waits for a network that is ready.
async fn becomes(daemon: &Daemon, expected: Option<&str>) {
    let mut last = String::new();
    let end = Instant::now() + TIMEOUT;
    while Instant::now() < end {
        let (ready, reason, message) = condition(&daemon.cri()).await.unwrap();
        let holds = match expected {
            None => ready && reason.is_empty() && message.is_empty(),
            Some(expected) => {
                !ready && reason == "NetworkPluginNotReady" && message.contains(expected)
            }
        };
        if holds {
            return;
        }
        last = format!("{ready} {reason}: {message}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never {expected:?}, but {last}");
}

#[tokio::test]
async fn without_a_network_only_pods_of_the_nodes_own_start_and_a_new_file_mends_it() {
    let daemon = daemon(10).await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    becomes(&daemon, None).await;
    let conf = place.conf_dir().display().to_string();
    place.unconfigure().unwrap();
    becomes(
        &daemon,
        Some(&format!("no network configuration in {conf}")),
    )
    .await;
    refused(
        cri.run_pod(&daemon.pod("own")).await,
        Code::Internal,
        &["no network configuration in", &conf],
    );
    let mut on_node = daemon.pod("node");
    let options = pod_security(&mut on_node)
        .namespace_options
        .as_mut()
        .unwrap();
    options.network = cri::NamespaceMode::Node as i32;
    let on_node = Pod::run_config(&daemon, on_node).await;

    std::fs::write(place.conf_dir().join("10-half.conflist"), "{\"name\"").unwrap();
    becomes(&daemon, Some("10-half.conflist: it is no JSON")).await;
    place
        .configure(&json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "absent"}]}))
        .unwrap();
    becomes(
        &daemon,
        Some("find plugin absent of network n: no executable of that name in"),
    )
    .await;
    refused(
        cri.run_pod(&daemon.pod("own")).await,
        Code::Internal,
        &["plugin absent"],
    );
    std::fs::rename(place.conf_dir(), place.conf_dir().with_extension("away")).unwrap();
    becomes(&daemon, Some("cannot be listed")).await;
    std::fs::rename(place.conf_dir().with_extension("away"), place.conf_dir()).unwrap();
    place.script("1.0.0", &["one"]).unwrap();
    becomes(&daemon, None).await;
    let own = Pod::run(&daemon, "own").await;
    assert_eq!(place.commands(), ["ADD one"]);
    end(&own).await;
    end(&on_node).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_changed_file_counts_for_the_next_pod_and_not_for_those_that_are_there() {
    let daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let old = Pod::run(&daemon, "old").await;
    assert_eq!(place.commands(), ["ADD one", "ADD two"]);
    place.script("0.4.0", &["three"]).unwrap();
    let new = Pod::run(&daemon, "new").await;
    assert_eq!(place.commands(), ["ADD three"]);
    end(&old).await;
    assert_eq!(place.commands(), ["DEL two", "DEL one"]);
    let input = place.input("one", "DEL").unwrap();
    assert_eq!(input["cniVersion"], "1.0.0");
    assert_eq!(input["prevResult"]["ips"][0]["address"], "192.0.2.7/24");
    place.unconfigure().unwrap();
    end(&new).await;
    assert_eq!(place.commands(), ["DEL three"]);
    assert!(place.leases().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn plugins_of_1_1_say_themselves_whether_they_are_ready() {
    let daemon = scripted(10, "1.1.0").await;
    let place = daemon.cni();
    becomes(&daemon, None).await;
    // Once or more, as it was asked.
    let mut asked = place.commands();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["STATUS one", "STATUS two"]);
    place
        .does(
            "two",
            "STATUS",
            r#"echo '{"code": 50, "msg": "agent is not up"}'; exit 1"#,
        )
        .unwrap();
    becomes(
        &daemon,
        Some("STATUS of plugin two for network scripted: agent is not up (code 50)"),
    )
    .await;
    place.does("two", "STATUS", "").unwrap();
    becomes(&daemon, None).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn namespaces_are_pinned_in_the_configured_directory() {
    let mut daemon = scripted(10, "1.0.0").await;
    let pins = daemon.scratch().dir().join("netns/coracle");
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    let set = format!("[network]\nnetns_dir = {pins:?}");
    std::fs::write(daemon.config_path(), text.replace("[network]", &set)).unwrap();
    daemon.restart().await.unwrap();
    let pod = Pod::run(&daemon, "pinned").await;
    let pin = pins.join(&pod.id).display().to_string();
    let calls = daemon.cni().calls();
    assert!(calls.iter().all(|call| call.ends_with(&pin)), "{calls:?}");
    assert!(daemon.scratch().mounts().contains(&pin));
    daemon.restart().await.unwrap();
    end(&pod).await;
    assert!(std::fs::read_dir(&pins).unwrap().next().is_none());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn pods_are_detached_by_the_network_that_connected_them_after_a_switch() {
    let mut daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    let by_plugins = Pod::run(&daemon, "by-plugins").await;
    place.calls();

    std::fs::write(
        daemon.config_path(),
        text.replace("mode = \"cni\"", "mode = \"builtin\""),
    )
    .unwrap();
    daemon.restart().await.unwrap();
    becomes(&daemon, None).await;
    let built_in = Pod::run(&daemon, "built-in").await;
    let status = built_in.cri.pod_status(&built_in.id).await.unwrap();
    assert_ne!(status.network.unwrap().ip, "192.0.2.7");
    let status = by_plugins.cri.pod_status(&by_plugins.id).await.unwrap();
    assert_eq!(status.network.unwrap().ip, "192.0.2.7");
    assert!(place.leases().len() == 2);
    end(&by_plugins).await;
    assert!(place.leases().is_empty());
    assert!(
        place
            .commands()
            .ends_with(&["DEL two".into(), "DEL one".into()])
    );

    std::fs::write(daemon.config_path(), text).unwrap();
    daemon.restart().await.unwrap();
    end(&built_in).await;
    assert!(place.commands().is_empty());
    daemon.finish().await.unwrap();
}

/// Has a daemon decide by itself from its next start on.
fn let_it_decide(daemon: &Daemon) {
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    let text = text.replace("mode = \"cni\"", "mode = \"auto\"");
    std::fs::write(daemon.config_path(), text).unwrap();
}

/// What a command prints, and whether it succeeds.
fn says(daemon: &Daemon, command: &str) -> String {
    let mut coracle = std::process::Command::new(coracle_tests::daemon::binary().unwrap());
    let output = coracle
        .arg(command)
        .arg("--config")
        .arg(daemon.config_path());
    String::from_utf8(output.output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_configuration_before_the_first_pod_decides_for_plugins_and_a_restart_decides_the_same() {
    let mut daemon = daemon(10).await;
    let place = daemon.cni();
    place.unconfigure().unwrap();
    let_it_decide(&daemon);
    daemon.restart().await.unwrap();
    becomes(&daemon, None).await;
    let status = says(&daemon, "status");
    assert!(status.contains("auto: builtin unless"), "{status}");
    place.script("1.0.0", &["one"]).unwrap();
    let pod = Pod::run(&daemon, "decides").await;
    assert_eq!(place.commands(), ["ADD one"]);
    for command in ["status", "check"] {
        let said = says(&daemon, command);
        assert!(said.contains("cni") && said.contains("auto)"), "{said}");
    }
    end(&pod).await;
    place.unconfigure().unwrap();
    daemon.restart().await.unwrap();
    // It does not fall back.
    becomes(&daemon, Some("no network configuration in")).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_comes_after_the_first_pod_is_not_used_and_warned_of() {
    let mut daemon = daemon(10).await;
    let place = daemon.cni();
    place.unconfigure().unwrap();
    let_it_decide(&daemon);
    daemon.restart().await.unwrap();
    let first = Pod::run(&daemon, "first").await;
    place.script("1.0.0", &["one"]).unwrap();
    let second = Pod::run(&daemon, "second").await;
    assert_eq!(place.commands(), Vec::<String>::new());
    daemon.restart().await.unwrap();
    for command in ["status", "check"] {
        let said = says(&daemon, command);
        let words = ["20-test.conflist", "network-mode"];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert!(daemon.log().contains("20-test.conflist"));
    for pod in [&first, &second] {
        end(pod).await;
    }
    daemon.finish().await.unwrap();
}
