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
    reports_a_ready_node(&crictl);
    let pod = crictl.run(&["runp", &pod_config]).unwrap();
    let (module, component) = (&site.hello.reference, &site.component_hello.reference);
    let [a, b] = [("module", module), ("component", component)].map(|(name, image)| {
        crictl.run(&["pull", image]).unwrap();
        let config = json!({"metadata": {"name": name}, "image": {"image": image}, "log_path": format!("{name}.log")});
        let config = write(&format!("{name}.json"), config);
        crictl.run(&["create", &pod, &config, &pod_config]).unwrap()
    });
    run_and_inspect(&crictl, &a, &b).await;
    crictl.run(&["inspectp", &pod]).unwrap();
    crictl.run(&["inspecti", module]).unwrap();
    assert!(crictl.run(&["images"]).unwrap().contains("component"));
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

fn json_of(crictl: &Crictl, arguments: &[&str]) -> Value {
    serde_json::from_str(&crictl.run(arguments).unwrap()).unwrap()
}

fn reports_a_ready_node(crictl: &Crictl) {
    let version = crictl.run(&["version"]).unwrap();
    assert!(
        version.contains("RuntimeName:  coracle") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    let info = json_of(crictl, &["info"]);
    let conditions = info["status"]["conditions"].as_array().unwrap();
    for name in ["RuntimeReady", "NetworkReady"] {
        let is_met = |c: &Value| c["type"] == name && c["status"] == true;
        assert!(conditions.iter().any(is_met), "{info}");
    }
}

/// Starts both containers, and shows what they wrote and how the second ended.
async fn run_and_inspect(crictl: &Crictl, module: &str, component: &str) {
    crictl.run(&["start", module]).unwrap();
    crictl.run(&["start", component]).unwrap();
    let running = json_of(crictl, &["ps", "-o", "json"]);
    let containers = running["containers"].as_array().unwrap();
    assert!(containers.iter().any(|c| c["id"] == module), "{running}");
    let wrote = |id: &str, text: &str| crictl.run(&["logs", id]).is_ok_and(|log| log == text);
    eventually("both have written", || {
        wrote(module, "hello") && wrote(component, "hello from a component")
    })
    .await;
    let inspected = json_of(crictl, &["inspect", component]);
    assert_eq!(inspected["status"]["state"], "CONTAINER_EXITED");
    assert_eq!(inspected["status"]["exitCode"], 0);
}
