//! Functions as a kubelet runs them: every kind of probe, hooks, replacement, an orderly end, sleep.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::kubelet::Node;
use coracle_tests::procs::{Process, Role};
use serde_json::{Value, json};

use crate::node::{images, node, pod, restarts};

/// A container of the component of `function.c`.
fn function(name: &str) -> Value {
    json!({"name": name, "image": images().function, "imagePullPolicy": "IfNotPresent"})
}

/// A pod of one function that has time to end.
fn serving(name: &str, container: Value) -> Value {
    let mut pod = pod(name, &[container]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    pod
}

fn url(pod: &Value, path: &str) -> String {
    let address = pod["status"]["podIP"].as_str().unwrap();
    format!("http://{address}:8080{path}")
}

/// The status of the answer to a GET; 0 without one.
fn get(url: &str) -> u16 {
    let said = Command::new("curl")
        .args([
            "-s",
            "-m",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            url,
        ])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&said.stdout).parse().unwrap()
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn functions_pass_every_kind_of_probe_and_fail_those_that_they_should() {
    let node = node(json!({})).await;
    let http = |path: &str| json!({"httpGet": {"path": path, "port": 8080}});
    let probes = [
        ("http", http("/hello"), true),
        ("tcp", json!({"tcpSocket": {"port": 8080}}), true),
        ("grpc", json!({"grpc": {"port": 8080}}), true),
        (
            "exec",
            json!({"exec": {"command": ["cat", "/etc/motd"]}}),
            true,
        ),
        ("nowhere", http("/nowhere"), false),
        (
            "absent",
            json!({"exec": {"command": ["cat", "/etc/absent"]}}),
            false,
        ),
    ];
    for (name, probe, passes) in &probes {
        let mut container = function("function");
        for kind in ["readinessProbe", "livenessProbe"] {
            let mut probe = probe.clone();
            probe["periodSeconds"] = json!(1);
            probe["failureThreshold"] = json!(2);
            probe["timeoutSeconds"] = json!(5);
            if *passes || kind == "livenessProbe" {
                container[kind] = probe;
            }
        }
        node.put(&serving(name, container)).unwrap();
    }
    for (name, _, passes) in &probes {
        match passes {
            true => drop(node.ready(name).await.unwrap()),
            false => drop(
                node.wait(name, "restarted", |pod| restarts(pod, "function") >= 1)
                    .await
                    .unwrap(),
            ),
        }
    }
    for (name, _, _) in probes.iter().filter(|(_, _, passes)| *passes) {
        let seen = node.pod(name).unwrap();
        assert_eq!(restarts(&seen, "function"), 0, "{name}");
    }
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn hooks_of_a_function_run_before_its_end() {
    let node = node(json!({})).await;
    let data = node.dir().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut container = function("function");
    container["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["cat", "/etc/motd"]}},
        "preStop": {"httpGet": {"path": "/write/data/stopping", "port": 8080}},
    });
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let mut pod = serving("hooks", container);
    pod["spec"]["volumes"] = json!([{"name": "data", "hostPath": {"path": data}}]);
    node.put(&pod).unwrap();
    let seen = node.ready("hooks").await.unwrap();
    assert_eq!(restarts(&seen, "function"), 0);
    assert!(!data.join("stopping").exists());
    node.take("hooks").unwrap();
    assert!(node.eventually(|| data.join("stopping").exists()).await);
    node.finish().await.unwrap();
}

/// As a Deployment does it behind a Service: the next pod is ready, clients go there, the one before is deleted.
#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_function_is_replaced_without_a_failed_request_and_drains() {
    let node = node(json!({})).await;
    let generation = |number: u32| {
        let mut container = function("function");
        container["readinessProbe"] =
            json!({"httpGet": {"path": "/hello", "port": 8080}, "periodSeconds": 1});
        serving(&format!("generation-{number}"), container)
    };
    node.put(&generation(0)).unwrap();
    let mut last = node.ready("generation-0").await.unwrap();
    let at = Arc::new(Mutex::new(url(&last, "/sleep/20")));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (at, over) = (at.clone(), over.clone());
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let url = at.lock().unwrap().clone();
                    answers.push(get(&url));
                }
                answers
            })
        })
        .collect();
    for number in 1..3 {
        node.put(&generation(number)).unwrap();
        let next = node.ready(&format!("generation-{number}")).await.unwrap();
        *at.lock().unwrap() = url(&next, "/sleep/20");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let slow = url(&last, "/sleep/3000");
        let under_way = std::thread::spawn(move || get(&slow));
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.take(&format!("generation-{}", number - 1)).unwrap();
        assert_eq!(
            under_way.join().unwrap(),
            200,
            "what is under way has its answer"
        );
        last = next;
    }
    over.store(true, Ordering::Relaxed);
    let answers: Vec<u16> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    assert!(answers.len() > 30, "{}", answers.len());
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    node.finish().await.unwrap();
}

/// Nothing that the kubelet does by itself wakes a function that sleeps, and it stays a running container of a ready pod.
#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_function_sleeps_and_wakes_through_the_address_of_its_pod() {
    let mut node = node(json!({})).await;
    let mut pod = serving("sleepy", function("function"));
    pod["metadata"]["annotations"] = json!({"coracle.dev/idle-seconds": "1"});
    node.put(&pod).unwrap();
    let seen = node.ready("sleepy").await.unwrap();
    for _ in 0..3 {
        assert!(asleep(&mut node).await, "{:?}", servers(&mut node));
        // Long enough for the kubelet to look at its pods and their stats.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(servers(&mut node), 0);
        assert_eq!(get(&url(&seen, "/hello")), 200);
        assert_eq!(servers(&mut node), 1);
    }
    let seen = node.ready("sleepy").await.unwrap();
    assert_eq!(restarts(&seen, "function"), 0);
    node.take("sleepy").unwrap();
    node.finish().await.unwrap();
}

/// Probes every second go on and say that all is well, and the guest is started for whoever calls and for nobody else.
#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_function_with_a_doorman_sleeps_through_the_kubelets_probes() {
    let options = Options {
        config: "[handlers.coracle.http]\nidle_s = 1\nprobes_wake = false\n".into(),
        ..Options::default()
    };
    let daemon = Daemon::start_with(options).await.unwrap();
    let mut node = Node::start(daemon, &json!({})).await.unwrap();
    let mut container = function("function");
    for (kind, probe) in [
        (
            "readinessProbe",
            json!({"httpGet": {"path": "/hello", "port": 8080}}),
        ),
        ("livenessProbe", json!({"tcpSocket": {"port": 8080}})),
    ] {
        container[kind] = probe;
        container[kind]["periodSeconds"] = json!(1);
        container[kind]["failureThreshold"] = json!(1);
    }
    node.put(&serving("guarded", container)).unwrap();
    let seen = node.ready("guarded").await.unwrap();
    for round in 0..3 {
        assert!(asleep(&mut node).await, "{:?}", servers(&mut node));
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(servers(&mut node), 0);
        }
        let found = node.daemon().processes(Role::Guest);
        let titles: Vec<&str> = found.iter().map(|one| one.command.as_str()).collect();
        let counted = format!(" wakes={round} ");
        assert!(
            titles.iter().any(|title| title.contains(&counted)),
            "{titles:?}"
        );
        let now = node.ready("guarded").await.unwrap();
        assert_eq!(restarts(&now, "function"), 0);
        let since = |pod: &Value| {
            let all = pod["status"]["conditions"].as_array().unwrap();
            let ready = all.iter().find(|one| one["type"] == "Ready").unwrap();
            ready["lastTransitionTime"].clone()
        };
        assert_eq!(since(&now), since(&seen), "it was ready all the time");
        assert_eq!(get(&url(&seen, "/hello")), 200);
        assert_eq!(servers(&mut node), 1);
    }
    node.finish().await.unwrap();
}

/// How many processes serve; those that hold the socket of one that sleeps are not counted.
fn servers(node: &mut Node) -> usize {
    let found = node.daemon().processes(Role::Guest);
    let serves = |process: &&Process| process.command.ends_with(" server");
    found.iter().filter(serves).count()
}

/// Waits until none serves; whether it came to that in ten seconds.
async fn asleep(node: &mut Node) -> bool {
    for _ in 0..100 {
        if servers(node) == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}
