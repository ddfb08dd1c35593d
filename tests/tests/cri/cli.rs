//! The command line, and the RPCs that describe the runtime: version, status, configuration.

use std::process::{Command, Output};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{self, Daemon, Options};

use crate::site::daemon;

fn coracle(args: &[&str]) -> Output {
    Command::new(daemon::binary().unwrap())
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn version_is_what_kubelet_asks_for() {
    let daemon = daemon().await;
    let asked = cri::VersionRequest {
        version: "0.1.0".into(),
    };
    let reply = daemon
        .cri()
        .runtime
        .clone()
        .version(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (reply.version.as_str(), reply.runtime_name.as_str()),
        ("0.1.0", "coracle")
    );
    assert_eq!(reply.runtime_api_version, "v1");
    assert_eq!(
        reply
            .runtime_version
            .split('.')
            .filter(|part| part.parse::<u32>().is_ok())
            .count(),
        3
    );
    let printed = coracle(&["version", "--json"]);
    let printed: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed["version"], reply.runtime_version);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn status_has_readiness_handlers_and_the_state_directory() {
    let daemon = daemon().await;
    let mut runtime = daemon.cri().runtime.clone();
    let reply = runtime
        .status(cri::StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    let conditions = reply.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        assert!(
            conditions
                .iter()
                .any(|condition| condition.r#type == name && condition.status),
            "{conditions:?}"
        );
    }
    let handlers: Vec<_> = reply
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    for name in ["", "coracle", "coracle-wasm", "coracle-strict"] {
        assert!(handlers.contains(&name), "{handlers:?}");
    }
    assert!(
        reply
            .runtime_handlers
            .iter()
            .all(|handler| handler.features.is_some())
    );
    let config: serde_json::Value = serde_json::from_str(&reply.info["config"]).unwrap();
    assert!(
        config["stateDir"]
            .as_str()
            .unwrap()
            .starts_with(daemon.scratch().dir().to_str().unwrap())
    );
    let quiet = runtime
        .status(cri::StatusRequest { verbose: false })
        .await
        .unwrap()
        .into_inner();
    assert!(quiet.info.is_empty());
    let driver = runtime
        .runtime_config(cri::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        driver.linux.unwrap().cgroup_driver(),
        cri::CgroupDriver::Cgroupfs
    );
    let cidr = cri::NetworkConfig {
        pod_cidr: "10.0.0.0/24".into(),
    };
    let runtime_config = Some(cri::RuntimeConfig {
        network_config: Some(cidr),
    });
    runtime
        .update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config })
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_default_configuration_passes_its_own_check() {
    let printed = coracle(&["config", "default"]);
    assert!(printed.status.success());
    let path =
        std::env::temp_dir().join(format!("coracle-test-default-{}.toml", std::process::id()));
    std::fs::write(&path, &printed.stdout).unwrap();
    let checked = coracle(&["config", "check", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[tokio::test]
async fn a_typo_in_the_configuration_is_named_with_its_line_before_anything_is_touched() {
    let options = Options {
        config: "[wasm]\ncompile_timout_s = 5\n".into(),
        ..Options::default()
    };
    let daemon = Daemon::prepare(options).unwrap();
    let line = std::fs::read_to_string(daemon.config_path()).unwrap();
    let line = 1 + line
        .lines()
        .position(|line| line.starts_with("compile_timout_s"))
        .unwrap();
    for output in [
        daemon.command().unwrap().output().unwrap(),
        coracle(&["config", "check", daemon.config_path().to_str().unwrap()]),
    ] {
        assert!(!output.status.success());
        let said = text(&output.stderr) + &text(&output.stdout);
        let place = format!("config.toml:{line}");
        for word in [place.as_str(), "compile_timout_s", "compile_timeout_s"] {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
    }
    assert!(!daemon.scratch().dir().join("run").exists());
    daemon.abandon();
}

#[tokio::test]
async fn unknown_commands_and_flags_are_refused_with_usage() {
    for args in [&["server"][..], &["serve", "--confg", "x"], &[]] {
        let output = coracle(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("Usage"), "{args:?}");
    }
}

#[tokio::test]
async fn check_names_what_the_node_has() {
    let output = coracle(&["check", "--json"]);
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(reply.to_string().contains("overlay"), "{reply}");
}

#[tokio::test]
async fn the_demo_shows_a_whole_life() {
    let output = coracle(&["demo"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for word in [
        "PullImage",
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
        "ms",
    ] {
        assert!(said.contains(word), "no {word} in:\n{said}");
    }
}
