//! A pod with two Wasm containers, by the real crictl, as an operator would type it.

use std::fs;

use coracle_tests::crictl::Crictl;
use serde_json::{Value, json};

use crate::site::{daemon, eventually, images};

#[tokio::test]
async fn a_pod_with_a_module_and_a_component_by_hand() {
    let daemon = daemon().await;
    let crictl = Crictl::new(&daemon.socket()).unwrap();
    let site = images();
    let dir = daemon.scratch().dir();
    let write = |name: &str, value: Value| {
        let path = dir.join(name);
        fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    };
    let logs = dir.join("logs/crictl");
    fs::create_dir_all(&logs).unwrap();
    let pod_config = write(
        "pod.json",
        json!({
            "metadata": {"name": "by-hand", "namespace": "default", "uid": "u1", "attempt": 0},
            "log_directory": logs, "linux": {"cgroup_parent": daemon.cgroup_parent()},
        }),
    );
    let container = |name: &str, image: &str| {
        let config = json!({"metadata": {"name": name}, "image": {"image": image}, "log_path": format!("{name}.log")});
        write(&format!("{name}.json"), config)
    };
    let (module, component) = (&site.hello.reference, &site.component_hello.reference);

    let version = crictl.run(&["version"]).unwrap();
    assert!(
        version.contains("RuntimeName:  coracle") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    let info: Value = serde_json::from_str(&crictl.run(&["info"]).unwrap()).unwrap();
    let conditions = info["status"]["conditions"].as_array().unwrap();
    for name in ["RuntimeReady", "NetworkReady"] {
        assert!(
            conditions
                .iter()
                .any(|c| c["type"] == name && c["status"] == true),
            "{info}"
        );
    }
    for image in [module, component] {
        crictl.run(&["pull", image]).unwrap();
    }
    assert!(crictl.run(&["images"]).unwrap().contains("component"));
    let pod = crictl.run(&["runp", &pod_config]).unwrap();
    let a = crictl
        .run(&["create", &pod, &container("module", module), &pod_config])
        .unwrap();
    let b = crictl
        .run(&[
            "create",
            &pod,
            &container("component", component),
            &pod_config,
        ])
        .unwrap();
    crictl.run(&["start", &a]).unwrap();
    crictl.run(&["start", &b]).unwrap();
    let running: Value = serde_json::from_str(&crictl.run(&["ps", "-o", "json"]).unwrap()).unwrap();
    assert!(
        running["containers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["id"] == a.as_str()),
        "{running}"
    );
    eventually("both have written", || {
        crictl.run(&["logs", &a]).is_ok_and(|text| text == "hello")
            && crictl
                .run(&["logs", &b])
                .is_ok_and(|text| text == "hello from a component")
    })
    .await;
    let inspected: Value = serde_json::from_str(&crictl.run(&["inspect", &b]).unwrap()).unwrap();
    assert_eq!(inspected["status"]["state"], "CONTAINER_EXITED");
    assert_eq!(inspected["status"]["exitCode"], 0);
    crictl.run(&["inspectp", &pod]).unwrap();
    crictl.run(&["inspecti", module]).unwrap();
    crictl.run(&["imagefsinfo"]).unwrap();
    assert!(crictl.run(&["pods"]).unwrap().contains("by-hand"));
    crictl.run(&["stop", &a]).unwrap();
    crictl.run(&["rm", &a, &b]).unwrap();
    assert_eq!(crictl.run(&["ps", "-a", "-q"]).unwrap(), "");
    crictl.run(&["stopp", &pod]).unwrap();
    crictl.run(&["rmp", &pod]).unwrap();
    assert_eq!(crictl.run(&["pods", "-q"]).unwrap(), "");
    crictl.run(&["rmi", component]).unwrap();
    daemon.finish().await.unwrap();
}
