//! Plugins of the Node Resource Interface: programs on NRI's own library (`tests/tools/nri/plugin.go`) that follow pods,
//! adjust containers, and misbehave.

mod adjust;
mod hostile;
mod late;
mod plugin;

use serde_json::Value;
use tonic::Code;

use crate::linux::shell::{self, sh};
use crate::metrics;
use crate::site::{Pod, daemon_with, refused, tool};
use coracle_tests::client::container;
use plugin::Plugin;

/// Options of a daemon to which plugins can connect, and whose plugins may be slow.
fn plugins() -> coracle_tests::daemon::Options {
    plugins_with("request_timeout_s = 60\nregistration_timeout_s = 60\n")
}

/// The same with other settings.
fn plugins_with(settings: &str) -> coracle_tests::daemon::Options {
    coracle_tests::daemon::Options {
        config: format!("[metrics]\naddress = \"127.0.0.1:0\"\n[nri]\nenabled = true\n{settings}"),
        ..Default::default()
    }
}

/// The names of events, in order.
fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_plugin_sees_the_life_of_a_pod_in_order() {
    let daemon = daemon_with(plugins()).await;
    let plugin = Plugin::start(&daemon, "logger", &[]).await;
    let pod = Pod::run(&daemon, "seen").await;
    let id = pod.start(&container("c", tool(), &["exit", "3"])).await;
    pod.cri.wait_exit(&id).await.unwrap();
    plugin.wait_for("StopContainer").await;
    pod.cri.remove(&id).await.unwrap();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    plugin.wait_for("RemovePodSandbox").await;
    let events = plugin.events();
    let expected = [
        "Configure",
        "Configured",
        "Synchronize",
        "RunPodSandbox",
        "CreateContainer",
        "Validate",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    assert_eq!(names(&events), expected);
    assert_eq!(events[0]["runtime"], "coracle");
    let ran = &events[3]["pod"];
    assert_eq!(
        (&ran["id"], &ran["name"]),
        (&Value::from(pod.id.as_str()), &"seen".into())
    );
    assert!(ran["ips"][0].as_str().unwrap().contains('.'), "{ran}");
    let created = &events[4]["container"];
    assert_eq!(created["id"], id.as_str());
    let args = created["args"].as_array().unwrap();
    assert_eq!(args[args.len() - 2..], ["exit", "3"], "{created}");
    assert!(events[8]["container"]["pid"].as_u64().unwrap() > 1);
    let stopped = &events[9]["container"];
    assert_eq!(
        (&stopped["exitCode"], &stopped["state"]),
        (&3.into(), &"CONTAINER_STOPPED".into())
    );
    let text = metrics::scrape(&daemon, "/metrics");
    for method in [
        "Configure",
        "Synchronize",
        "CreateContainer",
        "StopContainer",
    ] {
        let method = format!("method=\"{method}\"");
        let of = ["plugin=\"logger\"", &method];
        let count = metrics::value(&text, "coracle_nri_request_duration_seconds_count", &of);
        assert_eq!(count, 1.0, "{method}");
        let of = ["plugin=\"logger\"", &method, "result=\"ok\""];
        assert_eq!(
            metrics::value(&text, "coracle_nri_requests_total", &of),
            1.0
        );
    }
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_comes_later_or_again_learns_what_exists() {
    let mut daemon = daemon_with(plugins()).await;
    let pod = Pod::run(&daemon, "before").await;
    let running = pod.tool(&["sleep"]).await;
    let ended = pod.start(&container("ended", tool(), &["exit", "0"])).await;
    pod.cri.wait_exit(&ended).await.unwrap();
    for round in 0..2 {
        let plugin = Plugin::start(&daemon, "late", &[]).await;
        let events = plugin.events();
        let existing = events.iter().filter(|event| event["event"] == "Existing");
        let mut seen: Vec<&str> = existing
            .map(|event| {
                event["container"]["id"]
                    .as_str()
                    .or(event["pod"]["id"].as_str())
                    .unwrap()
            })
            .collect();
        let mut expected = [pod.id.as_str(), &running, &ended];
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected);
        if round == 0 {
            // The next daemon has the same pods, and plugins come to it again.
            daemon.terminate().await.unwrap();
            plugin.wait_for("Ended").await;
            assert!(names(&plugin.events()).contains(&"Shutdown"));
            daemon.restart().await.unwrap();
        }
    }
    daemon.finish().await.unwrap();
}

/// Containers that are created while a plugin is synchronised reach it by one way or the other.
#[tokio::test]
async fn no_container_is_missed_while_a_plugin_synchronises() {
    let daemon = daemon_with(plugins()).await;
    let pod = Pod::run(&daemon, "race").await;
    let create = |name: String| {
        let (cri, id, config) = (pod.cri.clone(), pod.id.clone(), pod.config.clone());
        tokio::spawn(async move {
            let container = container(&name, tool(), &["sleep"]);
            cri.create(&id, &container, &config).await.unwrap()
        })
    };
    let first: Vec<_> = (0..8).map(|n| create(format!("early{n}"))).collect();
    let starting = Plugin::start(&daemon, "racer", &[]);
    let more = async {
        let mut all = Vec::new();
        for n in 0..40 {
            all.push(create(format!("late{n}")));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        all
    };
    let (plugin, more) = tokio::join!(starting, more);
    let mut ids = Vec::new();
    for creation in first.into_iter().chain(more) {
        ids.push(creation.await.unwrap());
    }
    let events = plugin.events();
    for id in ids {
        let of = |name: &str| {
            let known =
                |event: &&Value| event["event"] == name && event["container"]["id"] == id.as_str();
            events.iter().filter(known).count()
        };
        assert!(
            of("Existing") + of("CreateContainer") == 1,
            "{id}: {events:?}"
        );
    }
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_or_start_that_a_plugin_refuses_leaves_nothing_and_can_be_tried_again() {
    let daemon = daemon_with(plugins()).await;
    let plugin = Plugin::start(
        &daemon,
        "guard",
        &["-fail", "RunPodSandbox", "-only", "refused"],
    )
    .await;
    let config = daemon.pod("refused");
    let result = daemon.cri().run_pod(&config).await;
    refused(
        result,
        Code::InvalidArgument,
        &["10-guard", "RunPodSandbox", "refused by the test"],
    );
    plugin.wait_for("RemovePodSandbox").await;
    assert!(daemon.cri().list_pods(None).await.unwrap().is_empty());
    drop(plugin);
    daemon.expect_no_leak().await.unwrap();
    let plugin = Plugin::start(
        &daemon,
        "guard",
        &["-fail", "StartContainer", "-only", "late"],
    )
    .await;
    let pod = Pod::run_config(&daemon, config).await;
    let id = pod
        .create(&container("late", tool(), &["sleep"]))
        .await
        .unwrap();
    let result = pod.cri.start(&id).await;
    refused(
        result,
        Code::InvalidArgument,
        &["10-guard", "StartContainer"],
    );
    assert_eq!(pod.cri.status(&id).await.unwrap().reason, "StartError");
    plugin.wait_for("StopContainer").await;
    pod.tool(&["sleep"]).await;
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn nothing_is_created_without_a_plugin_that_the_operator_requires() {
    let settings = "required_plugins = [\"guard\"]\nrequest_timeout_s = 5\n";
    let daemon = daemon_with(plugins_with(settings)).await;
    let pod = Pod::run(&daemon, "required").await;
    let config = container("c", tool(), &["sleep"]);
    let words = ["guard", "nri.required_plugins"];
    refused(pod.create(&config).await, Code::FailedPrecondition, &words);
    let plugin = Plugin::start(
        &daemon,
        "guard",
        &["-hang", "CreateContainer", "-only", "hung"],
    )
    .await;
    pod.start(&config).await;
    // It hangs and is closed: then it is missing.
    let hung = container("hung", tool(), &["sleep"]);
    refused(pod.create(&hung).await, Code::FailedPrecondition, &words);
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn limits_that_the_kubelet_changes_pass_plugins_and_plugins_change_others() {
    let daemon = shell::daemon_with(plugins()).await;
    let pod = Pod::run(&daemon, "updates").await;
    let id = pod.start(&sh("c", "sleep 1000")).await;
    let set = r#"{"containerId": "self", "linux": {"resources": {"cpu": {"quota": {"value": "70000"}}, "memory": {"limit": {"value": "134217728"}}}}}"#;
    let plugin = Plugin::start(&daemon, "changer", &["-update", set]).await;
    let change = |linux: &mut coracle_proto::runtime::v1::LinuxContainerResources| {
        (linux.cpu_quota, linux.cpu_period) = (50_000, 100_000);
    };
    crate::update::update(&pod.cri, &id, change).await.unwrap();
    plugin.wait_for("PostUpdateContainer").await;
    let (memory, quota, _) = crate::update::in_kernel(&daemon, &id);
    assert_eq!((memory.as_str(), quota.as_str()), ("134217728", "70000"));
    let events = plugin.events();
    let requested = events
        .iter()
        .find(|event| event["event"] == "Requested")
        .unwrap();
    assert_eq!(requested["resources"]["cpu"]["quota"]["value"], "50000");
    drop(plugin);
    let sent = r#"{"containerId": "self", "linux": {"resources": {"cpu": {"quota": {"value": "30000"}}}}}"#;
    let plugin = Plugin::start(
        &daemon,
        "sender",
        &["-send", "-update", sent, "-update-on", "UpdateContainer"],
    )
    .await;
    let other = pod.start(&sh("other", "sleep 1000")).await;
    let done = || crate::update::in_kernel(&daemon, &other).1 == "30000";
    crate::site::eventually("the plugin's own update", done).await;
    assert!(
        !names(&plugin.events()).contains(&"UpdateContainer"),
        "its own update came back to it"
    );
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn new_limits_of_a_whole_pod_pass_plugins_which_may_refuse_them() {
    let daemon = daemon_with(plugins()).await;
    let plugin = Plugin::start(&daemon, "pods", &[]).await;
    let pod = Pod::run(&daemon, "resized").await;
    let limits = |quota| {
        Some(coracle_proto::runtime::v1::LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        })
    };
    let request = coracle_proto::runtime::v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: limits(10_000),
        resources: limits(50_000),
    };
    let mut runtime = pod.cri.runtime.clone();
    let update = runtime.update_pod_sandbox_resources(request.clone());
    update.await.unwrap();
    let events = plugin.events();
    let tail = &names(&events)[events.len() - 3..];
    assert_eq!(
        tail,
        ["PodRequested", "UpdatePodSandbox", "PostUpdatePodSandbox"]
    );
    let requested = &events[events.len() - 3];
    let quota = |of: &str| requested[of]["cpu"]["quota"]["value"].clone();
    assert_eq!(
        (quota("overhead"), quota("resources")),
        ("10000".into(), "50000".into())
    );
    drop(plugin);
    let flags = ["-fail", "UpdatePodSandbox"];
    let plugin = Plugin::start(&daemon, "guard", &flags).await;
    let refusal = runtime.update_pod_sandbox_resources(request).await;
    let words = ["10-guard", "UpdatePodSandbox", "refused by the test"];
    refused(refusal, Code::InvalidArgument, &words);
    drop(plugin);
    daemon.finish().await.unwrap();
}
