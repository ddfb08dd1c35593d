//! How long containers live: probes, failures, back-off, the end of a pod, a daemon that is killed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{node, pod, restarts, script, status, wasm};

const SERVE: &str = "mkdir /www; echo fine > /www/index.html; touch /tmp/healthy; httpd -f -p 8080 -h /www & \
                     trap 'exit 0' TERM; wait; while :; do sleep 1; done";

fn probed(name: &str, probe: &Value) -> Value {
    let mut container = script(name, SERVE);
    let mut probe = probe.clone();
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(2);
    container["livenessProbe"] = probe.clone();
    container["readinessProbe"] = probe;
    container
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn probes_pass_and_a_container_whose_liveness_probe_fails_is_restarted() {
    let node = node(json!({})).await;
    let probes = [
        (
            "exec",
            json!({"exec": {"command": ["cat", "/tmp/healthy"]}}),
        ),
        ("http", json!({"httpGet": {"path": "/", "port": 8080}})),
        ("tcp", json!({"tcpSocket": {"port": 8080}})),
    ];
    for (name, probe) in &probes {
        node.put(&pod(name, &[probed("web", probe)])).unwrap();
    }
    for (name, _) in &probes {
        node.ready(name).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (name, _) in &probes {
        assert_eq!(restarts(&node.pod(name).unwrap(), "web"), 0, "{name}");
    }
    let spoil = |name: &str, args: &[&str]| {
        let full = format!("{name}-node1");
        let args: Vec<&str> = [&["exec", &full, "--"], args].concat();
        node.says(true, &args).unwrap();
    };
    spoil("exec", &["rm", "/tmp/healthy"]);
    spoil("http", &["rm", "/www/index.html"]);
    spoil("tcp", &["killall", "httpd"]);
    for (name, _) in &probes {
        let seen = node
            .wait(name, "restarted", |pod| restarts(pod, "web") == 1)
            .await
            .unwrap();
        let last = &status(&seen, "web")["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 0, "{name}: {last}");
        node.ready(name).await.unwrap();
    }
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_failing_container_is_restarted_with_back_off_and_keeps_its_reason() {
    let node = node(json!({})).await;
    let mut fails = script("fails", "echo trouble > /dev/termination-log; exit 7");
    fails["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    node.put(&pod("linux", &[fails])).unwrap();
    node.put(&pod("wasm", &[wasm("traps", &["trap"])])).unwrap();
    for (name, container, code, reason) in [
        ("linux", "fails", 7, "Error"),
        ("wasm", "traps", 134, "WasmTrap"),
    ] {
        let seen = node
            .wait(name, "restarted twice", |pod| restarts(pod, container) >= 2)
            .await
            .unwrap();
        // The kubelet says so in the pod's status only when it happens to look in between.
        let is_logged = |time| {
            let expected = format!("back-off {time} restarting failed container={container}");
            node.log().contains(&expected)
        };
        assert!(
            node.eventually(|| is_logged("10s") && is_logged("20s"))
                .await,
            "{name}"
        );
        let last = &status(&seen, container)["lastState"]["terminated"];
        assert_eq!(
            (&last["exitCode"], &last["reason"]),
            (&json!(code), &json!(reason)),
            "{last}"
        );
        if name == "linux" {
            assert_eq!(last["message"], "trouble\n");
        }
    }
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_killed_daemon_costs_no_pod_and_the_kubelet_goes_on() {
    let mut node = node(json!({})).await;
    let beat = script(
        "beat",
        "trap 'exit 0' TERM; while :; do echo tick; sleep 0.2; done",
    );
    node.put(&pod("linux", &[beat])).unwrap();
    node.put(&pod("wasm", &[wasm("sleeper", &["sleep", "1000"])]))
        .unwrap();
    let before = [
        node.ready("linux").await.unwrap(),
        node.ready("wasm").await.unwrap(),
    ];
    let ids = before
        .clone()
        .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].clone());
    node.daemon().kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.daemon().restart().await.unwrap();
    node.put(&pod("after", &[script("new", "sleep 1000")]))
        .unwrap();
    node.ready("after").await.unwrap();
    for (name, id) in ["linux", "wasm"].iter().zip(&ids) {
        let seen = node.ready(name).await.unwrap();
        let one = &seen["status"]["containerStatuses"][0];
        assert_eq!(
            (&one["restartCount"], &one["containerID"]),
            (&json!(0), id),
            "{name}"
        );
    }
    let ticks = node.says(true, &["logs", "linux-node1"]).unwrap();
    assert!(ticks.lines().count() > 15, "{ticks}");
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_kubelet_that_listens_to_events_sees_the_same_lives() {
    let node = node(json!({"featureGates": {"EventedPLEG": true}})).await;
    node.put(&pod("sleeps", &[wasm("sleeper", &["sleep", "1000"])]))
        .unwrap();
    let once = "[ -e /marks/ran ] && exec sleep 1000; touch /marks/ran; exit 3";
    let mut fails = script("fails", once);
    fails["volumeMounts"] = json!([{"name": "marks", "mountPath": "/marks"}]);
    let mut pod = pod("fails", &[fails]);
    pod["spec"]["volumes"] = json!([{"name": "marks", "emptyDir": {}}]);
    node.put(&pod).unwrap();
    node.ready("sleeps").await.unwrap();
    node.wait("fails", "restarted", |pod| restarts(pod, "fails") == 1)
        .await
        .unwrap();
    let seen = node.ready("fails").await.unwrap();
    let last = &status(&seen, "fails")["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 3, "{last}");
    assert!(
        !node.log().contains("Evented PLEG: failed"),
        "{}",
        node.log()
    );
    node.finish().await.unwrap();
}
