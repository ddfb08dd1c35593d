//! What a kubelet gives a pod: volumes, files, init containers, hooks, an orderly end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::{images, node, pod, restarts, script, status, wasm};

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn volumes_of_a_pod_are_shared_by_its_linux_and_wasm_containers() {
    let node = node(json!({})).await;
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "about", "downwardAPI": {"items": [
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"name": "image", "image": {"reference": images().content, "pullPolicy": "IfNotPresent"}},
    ]);
    let mounts = json!([
        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "about", "mountPath": "/about"}, {"name": "image", "mountPath": "/image"},
    ]);
    let mut writes = script(
        "writes",
        "cat /about/name > /disk/name; cat /image/top > /memory/top",
    );
    writes["volumeMounts"] = mounts.clone();
    let mut linux = script("linux", "cat /disk/name /memory/top; exec sleep 1000");
    linux["volumeMounts"] = mounts.clone();
    let mut readers = vec![linux];
    for (name, file) in [
        ("disk", "/disk/name"),
        ("memory", "/memory/top"),
        ("image", "/image/top"),
    ] {
        let mut container = wasm(name, &["read", file]);
        container["volumeMounts"] = mounts.clone();
        readers.push(container);
    }
    let mut pod = pod("mixed", &readers);
    pod["spec"]["volumes"] = volumes;
    pod["spec"]["initContainers"] = json!([writes]);
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    node.put(&pod).unwrap();
    let read = |pod: &Value| {
        let ended = |name| status(pod, name)["state"]["terminated"]["exitCode"] == 0;
        ["disk", "memory", "image"].iter().all(|name| ended(*name))
            && status(pod, "linux")["ready"] == true
    };
    node.wait("mixed", "read by all", read).await.unwrap();
    let output = |container: &str| node.log_text("mixed", container).unwrap();
    assert_eq!(output("linux"), "mixed-node1top of the image\n");
    assert_eq!(output("disk").trim_end(), "mixed-node1");
    assert_eq!(output("memory").trim_end(), "top of the image");
    assert_eq!(output("image").trim_end(), "top of the image");
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn names_hosts_and_the_environment_are_those_of_the_kubelet() {
    let node = node(json!({})).await;
    let mut shows = script(
        "shows",
        "hostname; cat /etc/hosts /etc/resolv.conf; echo me=$ME at=$AT; sleep 1000",
    );
    shows["env"] = json!([
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "AT", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]);
    let mut pod = pod("named", &[shows]);
    pod["spec"]["hostAliases"] = json!([{"ip": "192.0.2.7", "hostnames": ["elsewhere"]}]);
    pod["spec"]["dnsConfig"] = json!({"options": [{"name": "ndots", "value": "2"}]});
    node.put(&pod).unwrap();
    let seen = node.ready("named").await.unwrap();
    let address = seen["status"]["podIP"].as_str().unwrap().to_owned();
    node.eventually(|| node.log_text("named", "shows").unwrap().contains("me="))
        .await;
    let output = node.log_text("named", "shows").unwrap();
    assert!(output.starts_with("named-node1\n"), "{output}");
    for expected in [
        "192.0.2.7\telsewhere",
        "search default.svc.cluster.test svc.cluster.test cluster.test",
        "nameserver 10.96.0.10",
        "options ndots:2",
    ] {
        assert!(output.contains(expected), "no {expected:?} in {output}");
    }
    assert!(
        output.contains(&format!("{address}\tnamed-node1")),
        "{output}"
    );
    assert!(
        output.contains(&format!("me=named-node1 at={address}")),
        "{output}"
    );
    node.finish().await.unwrap();
}

/// A sidecar outlives the container it serves, hooks run, and grace is given.
#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn sidecars_hooks_and_the_end_of_a_pod_come_in_order() {
    let node = node(json!({})).await;
    let share = json!([{"name": "notes", "mountPath": "/notes"}]);
    let note = |text: &str| format!("echo {text} >> /notes/all");
    let mut main = script(
        "main",
        &format!(
            "{}; trap '{}; exit 0' TERM; while :; do sleep 0.1; done",
            note("main"),
            note("main-ends")
        ),
    );
    main["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["/bin/sh", "-c", note("started")]}},
        "preStop": {"exec": {"command": ["/bin/sh", "-c", note("stopping")]}},
    });
    let mut sidecar = script(
        "sidecar",
        &format!(
            "{}; trap '{}; exit 0' TERM; while :; do sleep 0.1; done",
            note("sidecar"),
            note("sidecar-ends")
        ),
    );
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] =
        json!({"exec": {"command": ["grep", "sidecar", "/notes/all"]}, "periodSeconds": 1});
    main["volumeMounts"] = share.clone();
    sidecar["volumeMounts"] = share;
    let mut pod = pod("ordered", &[main]);
    let notes = node.dir().join("notes");
    std::fs::create_dir(&notes).unwrap();
    pod["spec"]["initContainers"] = json!([sidecar]);
    pod["spec"]["volumes"] = json!([{"name": "notes", "hostPath": {"path": notes}}]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    node.put(&pod).unwrap();
    let seen = node.ready("ordered").await.unwrap();
    assert_eq!(restarts(&seen, "main"), 0);
    let began = Instant::now();
    node.take("ordered").unwrap();
    let read = || std::fs::read_to_string(notes.join("all")).unwrap();
    assert!(
        node.eventually(|| read().contains("sidecar-ends")).await,
        "{}",
        read()
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    let all = read();
    let lines: Vec<&str> = all.lines().collect();
    // The hook and the program start at once, so either may come first.
    assert_eq!(lines[0], "sidecar", "{lines:?}");
    assert!(
        lines[1..3].contains(&"main") && lines[1..3].contains(&"started"),
        "{lines:?}"
    );
    assert_eq!(
        lines[3..],
        ["stopping", "main-ends", "sidecar-ends"],
        "{lines:?}"
    );
    node.finish().await.unwrap();
}
