//! What plugins adjust arrives in the container; what cannot be adjusted fails the creation by name.

use tonic::Code;

use super::plugin::Plugin;
use super::plugins;
use crate::linux::cdi::Interface;
use crate::linux::shell::{self, host_dir, program, run, sh};
use crate::site::{Pod, daemon_with, refused, tool};
use coracle_tests::client::container;

#[tokio::test]
async fn a_webassembly_container_gets_variables_arguments_annotations_mounts_and_limits() {
    let daemon = daemon_with(plugins()).await;
    let shared = host_dir(&daemon, "shared");
    std::fs::write(shared.join("note"), "from a plugin").unwrap();
    let adjust = format!(
        r#"{{"env": [{{"key": "ADDED", "value": "1"}}, {{"key": "-GONE"}}, {{"key": "KEPT", "value": "new"}}],
            "annotations": {{"a.example/b": "c"}},
            "mounts": [{{"destination": "/shared", "source": {shared:?}, "type": "bind", "options": ["rbind", "ro"]}}],
            "linux": {{"resources": {{"memory": {{"limit": {{"value": "67108864"}}}}, "cpu": {{"shares": {{"value": "512"}}}}}},
                       "oomScoreAdj": {{"value": "500"}}}}}}"#
    );
    let plugin = Plugin::start(&daemon, "adjuster", &["-adjust", &adjust]).await;
    let pod = Pod::run(&daemon, "wasm").await;
    let mut config = container("c", tool(), &["show"]);
    config.envs = [("GONE", "x"), ("KEPT", "old")]
        .map(|(key, value)| coracle_proto::runtime::v1::KeyValue {
            key: key.into(),
            value: value.into(),
        })
        .to_vec();
    let (status, out) = pod.finish(&daemon, &config).await;
    assert!(
        out.contains("ADDED=1") && out.contains("KEPT=new") && !out.contains("GONE"),
        "{out}"
    );
    assert_eq!(
        status.annotations.get("a.example/b").map(String::as_str),
        Some("c")
    );
    let limits = status.resources.unwrap().linux.unwrap();
    assert_eq!(
        (limits.memory_limit_in_bytes, limits.cpu_shares),
        (64 << 20, 512)
    );
    let read = container("r", tool(), &["read", "/shared/note"]);
    assert_eq!(pod.finish(&daemon, &read).await.1.trim(), "from a plugin");
    let id = pod.tool(&["sleep"]).await;
    let pid = plugin
        .events()
        .iter()
        .rev()
        .find_map(|event| event["container"]["pid"].as_i64())
        .unwrap();
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    // A retry of the kubelet's request is the same request, although the container is another.
    let again = pod
        .create(&container("again", tool(), &["sleep"]))
        .await
        .unwrap();
    assert_eq!(
        pod.create(&container("again", tool(), &["sleep"]))
            .await
            .unwrap(),
        again
    );
    assert_ne!(again, id);
    drop(plugin);
    let plugin = Plugin::start(
        &daemon,
        "args",
        &["-adjust", r#"{"args": ["/tool.wasm", "exit", "7"]}"#],
    )
    .await;
    let (status, _) = pod
        .finish(&daemon, &container("a", tool(), &["exit", "0"]))
        .await;
    assert_eq!(status.exit_code, 7);
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_linux_container_gets_devices_limits_of_its_process_and_of_its_cgroup_too() {
    let daemon = shell::daemon_with(plugins()).await;
    let adjust = r#"{"rlimits": [{"type": "RLIMIT_NOFILE", "hard": "400", "soft": "300"}],
        "env": [{"key": "ADDED", "value": "1"}],
        "linux": {"devices": [{"path": "/dev/of/kmsg", "type": "c", "major": "1", "minor": "11"}],
                  "resources": {"pids": {"limit": "77"}, "memory": {"limit": {"value": "134217728"}}},
                  "oomScoreAdj": {"value": "321"}}}"#;
    let plugin = Plugin::start(&daemon, "adjuster", &["-adjust", adjust]).await;
    let pod = Pod::run(&daemon, "linux").await;
    let script = "ulimit -Sn; ulimit -Hn; echo $ADDED; stat -c %t:%T /dev/of/kmsg; cat /proc/self/oom_score_adj";
    run(&daemon, &pod, &sh("c", script))
        .await
        .says(&["300", "400", "1", "1:b", "321"]);
    let id = pod.start(&sh("s", "sleep 1000")).await;
    let (memory, ..) = crate::update::in_kernel(&daemon, &id);
    assert_eq!(memory, "134217728");
    let path = format!("{}/{id}/pids.max", daemon.cgroup_parent());
    let pids = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .map(|root| std::fs::read_to_string(root.to_owned() + &path));
    let pids = pids.into_iter().find_map(Result::ok).unwrap();
    assert_eq!(pids.trim(), "77");
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_linux_container_is_scheduled_as_a_plugin_says_and_so_are_its_execs() {
    let daemon = shell::daemon_with(plugins()).await;
    let adjust = r#"{"linux": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}"#;
    let plugin = Plugin::start(&daemon, "scheduler", &["-adjust", adjust]).await;
    let pod = Pod::run(&daemon, "scheduled").await;
    let id = pod.start(&sh("c", "exec sleep 4713")).await;
    let pid = shell::host_pid(&daemon, "sleep 4713");
    let facts = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<String> = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .map(str::to_owned)
            .collect();
        // Fields 19 and 41 of proc(5): nice and policy; SCHED_BATCH is 3.
        (fields[16].clone(), fields[38].clone())
    };
    assert_eq!(facts(pid), ("7".to_owned(), "3".to_owned()));
    let mut ionice = std::process::Command::new("ionice");
    let shown = ionice.args(["-p", &pid.to_string()]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert_eq!(shown.trim(), "best-effort: prio 6");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/numa_maps"));
    // A kernel without NUMA has no such file.
    assert!(maps.is_err() || maps.unwrap().contains("bind:0"));
    let request = coracle_proto::runtime::v1::ExecSyncRequest {
        container_id: id,
        cmd: vec!["cat".into(), "/proc/self/stat".into()],
        timeout: 10,
    };
    let mut runtime = pod.cri.runtime.clone();
    let exec = runtime.exec_sync(request).await.unwrap().into_inner();
    let stat = String::from_utf8_lossy(&exec.stdout).into_owned();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((fields[16], fields[38]), ("7", "3"));
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_linux_container_gets_a_network_device_of_the_node() {
    let daemon = shell::daemon_with(plugins()).await;
    let nic = Interface::new(&daemon);
    let adjust = format!(
        r#"{{"linux": {{"netDevices": {{"{}": {{"name": "fast0"}}}}}}}}"#,
        nic.0
    );
    let plugin = Plugin::start(&daemon, "network", &["-adjust", &adjust]).await;
    let pod = Pod::run(&daemon, "fast").await;
    let config = sh("c", "cat /sys/class/net/fast0/mtu");
    run(&daemon, &pod, &config).await.says(&["1400"]);
    drop(plugin);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_webassembly_container_gets_limits_of_its_process() {
    let daemon = daemon_with(plugins()).await;
    let adjust = r#"{"rlimits": [{"type": "RLIMIT_NOFILE", "hard": "400", "soft": "300"},
        {"type": "RLIMIT_FSIZE", "hard": "5000", "soft": "5000"}, {"type": "RLIMIT_CORE", "hard": "1", "soft": "1"}]}"#;
    let plugin = Plugin::start(&daemon, "limits", &["-adjust", adjust]).await;
    let pod = Pod::run(&daemon, "limited").await;
    pod.tool(&["sleep"]).await;
    let pid = plugin
        .events()
        .iter()
        .rev()
        .find_map(|event| event["container"]["pid"].as_i64())
        .unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let words: Vec<&str> = line[name.len()..].split_whitespace().collect();
        (words[0].to_owned(), words[1].to_owned())
    };
    let pair = |soft: &str, hard: &str| (soft.to_owned(), hard.to_owned());
    assert_eq!(limit("Max open files"), pair("300", "400"));
    assert_eq!(limit("Max file size"), pair("5000", "5000"));
    assert_eq!(limit("Max core file size"), pair("0", "0"));
    drop(plugin);
    daemon.finish().await.unwrap();
}

/// Each is refused with the plugin's name and the field's, and leaves nothing.
#[tokio::test]
async fn an_adjustment_that_cannot_be_made_fails_the_creation_by_name() {
    let daemon = shell::daemon_with(plugins()).await;
    let pod = Pod::run(&daemon, "refusals").await;
    let wasm = || container("c", tool(), &["sleep"]);
    let linux = || program("c", &["/bin/sh"]);
    let device = r#"{"linux": {"devices": [{"path": "/dev/x", "type": "c", "major": "250", "minor": "77"}]}}"#;
    let hooks = r#"{"hooks": {"createContainer": [{"path": "/bin/true"}]}}"#;
    let tmpfs = r#"{"mounts": [{"destination": "/t", "type": "tmpfs", "source": "tmpfs"}]}"#;
    let absent = r#"{"mounts": [{"destination": "/t", "type": "bind", "source": "/absent/file", "options": ["bind", "unknown"]}]}"#;
    for (adjust, config, field) in [
        (device, wasm(), "devices"),
        (device, linux(), "devices"),
        (hooks, linux(), "hooks"),
        (tmpfs, linux(), "mounts"),
        (absent, linux(), "mounts"),
        (
            r#"{"linux": {"seccompPolicy": {"defaultAction": "SCMP_ACT_ALLOW"}}}"#,
            linux(),
            "seccomp",
        ),
        (
            r#"{"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}}"#,
            linux(),
            "sysctl",
        ),
        (
            r#"{"linux": {"scheduler": {"policy": "SCHED_ISO"}}}"#,
            linux(),
            "scheduler",
        ),
        (
            r#"{"linux": {"ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}}"#,
            wasm(),
            "io_priority",
        ),
        (
            r#"{"rlimits": [{"type": "RLIMIT_NPROC", "hard": "4", "soft": "3"}]}"#,
            wasm(),
            "rlimits",
        ),
        (
            r#"{"rlimits": [{"type": "RLIMIT_X", "hard": "4", "soft": "3"}]}"#,
            linux(),
            "rlimits",
        ),
        (
            r#"{"linux": {"resources": {"blockioClass": {"value": "x"}}}}"#,
            linux(),
            "resources",
        ),
        (
            r#"{"linux": {"oomScoreAdj": {"value": "1001"}}}"#,
            linux(),
            "oom_score_adj",
        ),
        (r#"{"args": ["", ""]}"#, linux(), "arguments"),
        (
            r#"{"env": [{"key": "A=B", "value": "1"}]}"#,
            wasm(),
            "variable",
        ),
        (
            r#"{"CDIDevices": [{"name": "absent.example/x=y"}]}"#,
            linux(),
            "absent.example/x=y",
        ),
    ] {
        let plugin = Plugin::start(&daemon, "wild", &["-adjust", adjust]).await;
        refused(
            pod.create(&config).await,
            Code::InvalidArgument,
            &["10-wild", field],
        );
        plugin.wait_for("RemoveContainer").await;
        assert!(pod.cri.list(None).await.unwrap().is_empty());
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn plugins_are_called_in_order_and_two_do_not_set_the_same() {
    let daemon = daemon_with(plugins()).await;
    let set = |key: &str| format!(r#"{{"env": [{{"key": "{key}", "value": "1"}}]}}"#);
    let second = Plugin::start_at(
        &daemon,
        "20",
        "second",
        &["-adjust", &set("A"), "-only", "clash"],
    )
    .await;
    let first = Plugin::start_at(&daemon, "10", "first", &["-adjust", &set("A")]).await;
    let pod = Pod::run(&daemon, "order").await;
    let clash = container("clash", tool(), &["sleep"]);
    refused(
        pod.create(&clash).await,
        Code::InvalidArgument,
        &["20-second", "env", "\"A\"", "10-first"],
    );
    pod.tool(&["sleep"]).await;
    // The second one was shown what the first one had adjusted.
    let seen = second
        .events()
        .into_iter()
        .filter(|event| event["event"] == "CreateContainer");
    for event in seen {
        let env = event["container"]["env"].as_array().unwrap();
        assert!(env.contains(&"A=1".into()), "{event}");
    }
    drop(second);
    let replacing = r#"{"env": [{"key": "-A"}, {"key": "A", "value": "2"}]}"#;
    let second = Plugin::start_at(&daemon, "20", "second", &["-adjust", replacing]).await;
    let (_, out) = pod
        .finish(&daemon, &container("replaced", tool(), &["show"]))
        .await;
    assert!(out.contains("A=2"), "{out}");
    drop((first, second));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_validator_sees_all_with_owners_and_can_reject_it() {
    let daemon = daemon_with(plugins()).await;
    let adjust = r#"{"env": [{"key": "A", "value": "1"}]}"#;
    let adjuster = Plugin::start_at(&daemon, "50", "adjuster", &["-adjust", adjust]).await;
    let validator = Plugin::start_at(
        &daemon,
        "10",
        "validator",
        &["-fail", "Validate", "-only", "bad"],
    )
    .await;
    let pod = Pod::run(&daemon, "validated").await;
    let bad = container("bad", tool(), &["sleep"]);
    refused(
        pod.create(&bad).await,
        Code::InvalidArgument,
        &["10-validator", "rejected by the test"],
    );
    pod.tool(&["sleep"]).await;
    let request = &validator.wait_for("Validate").await["request"];
    let owners = request["owners"]["owners"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap();
    assert_eq!(
        owners["compound"]["6"]["owners"]["A"], "50-adjuster",
        "{request}"
    );
    assert_eq!(request["adjust"]["env"][0]["key"], "A", "{request}");
    drop((adjuster, validator));
    daemon.finish().await.unwrap();
}
