//! Plugins that are slow, or come while something is under way: others wait for a limited time, and a plugin learns of each
//! container once.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::plugin::Plugin;
use super::{names, plugins, plugins_with};
use crate::site::{Pod, daemon_with, eventually, tool};
use coracle_tests::client::container;
use coracle_tests::daemon::Options;

/// A plugin may take four seconds for a request.
fn impatient() -> Options {
    plugins_with("request_timeout_s = 4\n")
}

/// The names of the events about a container, in order.
fn about(events: &[Value], id: &str) -> Vec<String> {
    let own = events.iter().filter(|event| event["container"]["id"] == id);
    own.map(|event| event["event"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_plugin_that_is_always_slow_and_answers_in_time_is_asked_about_all() {
    let daemon = daemon_with(impatient()).await;
    let flags = ["-slow", "CreateContainer", "-late", "2100ms"];
    let plugin = Plugin::start(&daemon, "slow", &flags).await;
    let pod = Pod::run(&daemon, "slow").await;
    let began = Instant::now();
    let mut creations = Vec::new();
    // The last waits for longer than five calls may take.
    for n in 0..10 {
        let (cri, id, config) = (pod.cri.clone(), pod.id.clone(), pod.config.clone());
        creations.push(tokio::spawn(async move {
            let container = container(&format!("c{n}"), tool(), &["sleep"]);
            cri.create(&id, &container, &config).await
        }));
    }
    for creation in creations {
        creation.await.unwrap().unwrap();
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(20), "{took:?}");
    let events = plugin.events();
    let asked = names(&events);
    let asked = asked.iter().filter(|name| **name == "CreateContainer");
    assert_eq!(asked.count(), 10);
    assert!(!daemon.log().contains("a request waited for it longer than"));
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_stopped_waits_for_slow_plugins_for_a_limited_time() {
    let daemon = daemon_with(impatient()).await;
    let flags = ["-slow", "StopContainer,StopPodSandbox", "-late", "2500ms"];
    let plugin = Plugin::start(&daemon, "slow", &flags).await;
    let pod = Pod::run(&daemon, "stop").await;
    for n in 0..8 {
        pod.start(&container(&format!("c{n}"), tool(), &["sleep"]))
            .await;
    }
    let began = Instant::now();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    // Twice what a call may take, and not nine times what its calls take. It learns of everything nevertheless.
    let told = plugin.events();
    assert!(!names(&told).contains(&"StopPodSandbox"), "{told:?}");
    assert!(began.elapsed() > Duration::from_secs(4));
    plugin.wait_for("StopPodSandbox").await;
    let events = plugin.events();
    let stopped = names(&events);
    let stopped = stopped.iter().filter(|name| **name == "StopContainer");
    assert_eq!(stopped.count(), 8);
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_comes_during_a_start_learns_of_start_and_end() {
    let options = Options {
        failpoints: Some("start.log delay:3000".to_owned()),
        binary: Some(coracle_tests::daemon::failpoints_binary().unwrap()),
        ..plugins()
    };
    let daemon = daemon_with(options).await;
    let pod = Pod::run(&daemon, "during").await;
    let id = pod
        .create(&container("c", tool(), &["sleep"]))
        .await
        .unwrap();
    let starting = {
        let (cri, id) = (pod.cri.clone(), id.clone());
        tokio::spawn(async move { cri.start(&id).await })
    };
    let reached = || daemon.reached().contains(&"start.log".to_owned());
    eventually("the start is under way", reached).await;
    let plugin = Plugin::start(&daemon, "during", &[]).await;
    assert_eq!(about(&plugin.events(), &id), ["Existing"]);
    starting.await.unwrap().unwrap();
    pod.cri.stop(&id, 0).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    plugin.wait_for("RemoveContainer").await;
    let expected = [
        "Existing",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
    ];
    assert_eq!(about(&plugin.events(), &id), expected);
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_plugin_was_synchronised_with_is_not_told_again() {
    let daemon = daemon_with(plugins()).await;
    let flags = ["-slow", "StopContainer", "-late", "1500ms"];
    let slow = Plugin::start_at(&daemon, "05", "slow", &flags).await;
    let pod = Pod::run(&daemon, "again").await;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = pod.start(&container(name, tool(), &["sleep"])).await;
        pod.cri.stop(&id, 0).await.unwrap();
        ids.push(id);
    }
    // The slow one is still told of the first end; the second waits in the queue.
    let late = Plugin::start(&daemon, "late", &[]).await;
    let stopped = |plugin: &Plugin| {
        let events = plugin.events();
        let stops = names(&events)
            .into_iter()
            .filter(|name| *name == "StopContainer");
        stops.count()
    };
    eventually("the slow one is told of both", || stopped(&slow) == 2).await;
    let last = pod.tool(&["sleep"]).await;
    pod.cri.stop(&last, 0).await.unwrap();
    late.wait_for("StopContainer").await;
    let events = late.events();
    for id in ids {
        assert_eq!(about(&events, &id), ["Existing"]);
    }
    drop((slow, late));
    daemon.finish().await.unwrap();
}
