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
    let request = cri::VersionRequest {
        version: "0.1.0".into(),
    };
    let reply = daemon
        .cri()
        .runtime
        .clone()
        .version(request)
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
    let reply = status(&daemon, true).await;
    let conditions = reply.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let mut all = conditions.iter();
        let holds = all.any(|condition| condition.r#type == name && condition.status);
        assert!(holds, "{name}: {conditions:?}");
    }
    let handlers = &reply.runtime_handlers;
    for name in ["", "coracle", "coracle-wasm", "coracle-strict"] {
        let found = handlers.iter().find(|handler| handler.name == name);
        let found = found.unwrap_or_else(|| panic!("no {name:?} in {handlers:?}"));
        assert!(found.features.is_some(), "{found:?}");
    }
    let config: serde_json::Value = serde_json::from_str(&reply.info["config"]).unwrap();
    let state = config["stateDir"].as_str().unwrap();
    let scratch = daemon.scratch().dir().to_str().unwrap();
    assert!(state.starts_with(scratch), "{state}");
    assert!(status(&daemon, false).await.info.is_empty());
    daemon.finish().await.unwrap();
}

async fn status(daemon: &Daemon, verbose: bool) -> cri::StatusResponse {
    let mut runtime = daemon.cri().runtime.clone();
    let reply = runtime.status(cri::StatusRequest { verbose }).await;
    reply.unwrap().into_inner()
}

#[tokio::test]
async fn the_runtime_config_names_the_cgroup_driver_and_takes_a_pod_cidr() {
    let daemon = daemon().await;
    let mut runtime = daemon.cri().runtime.clone();
    let reply = runtime.runtime_config(cri::RuntimeConfigRequest {}).await;
    let driver = reply.unwrap().into_inner().linux.unwrap().cgroup_driver();
    assert_eq!(driver, cri::CgroupDriver::Cgroupfs);
    let network_config = Some(cri::NetworkConfig {
        pod_cidr: "10.0.0.0/24".into(),
    });
    let runtime_config = Some(cri::RuntimeConfig { network_config });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config };
    runtime.update_runtime_config(request).await.unwrap();
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

/// What the daemon does not start with is found before it is restarted.
#[tokio::test]
async fn proxies_that_the_daemon_refuses_are_refused_by_the_checks() {
    for (images, says) in [
        ("no_proxy = [\"10.0.0.0/99\"]", "images.no_proxy"),
        ("proxy = \"http://[::1\"", "images.proxy"),
        (
            "proxy_from_environment = true\nno_proxy = [\"10.0.0.0/99\"]",
            "images.no_proxy",
        ),
    ] {
        let options = Options {
            images: format!("{images}\n"),
            ..Options::default()
        };
        let daemon = Daemon::prepare(options).unwrap();
        let file = daemon.config_path();
        let file = file.to_str().unwrap();
        for output in [
            daemon.command().unwrap().output().unwrap(),
            coracle(&["config", "check", "--config", file]),
            coracle(&["check", "--config", file]),
        ] {
            let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
            assert!(!output.status.success() && said.contains(says), "{said}");
        }
        daemon.abandon();
    }
}

#[tokio::test]
async fn the_configuration_and_its_drop_ins_are_checked_and_shown_with_their_origins() {
    let daemon = Daemon::prepare(Options::default()).unwrap();
    let directory = daemon.scratch().dir().join("conf.d");
    std::fs::create_dir(&directory).unwrap();
    let drop_in = directory.join("50-level.toml");
    std::fs::write(&drop_in, "[log]\nlevel = \"error\"\n").unwrap();
    let file = daemon.config_path();
    let (file, drop_in) = (file.to_str().unwrap(), drop_in.to_str().unwrap());
    let checked = coracle(&["config", "check", "--config", file]);
    assert_eq!(
        text(&checked.stdout),
        format!("{file}: good\n{drop_in}: good\n")
    );
    let shown = text(&coracle(&["config", "show", "--origin", "--config", file]).stdout);
    let line = format!("log.level = \"error\"  # {drop_in}:2");
    assert!(
        shown.lines().any(|shown| shown == line),
        "no {line} in {shown}"
    );
    let without = coracle(&["config", "show", "--config", file, "--config-dir", ""]);
    assert!(text(&without.stdout).contains("level = \"debug\""));
    std::fs::write(drop_in, "[log]\nlevle = 1\n").unwrap();
    for output in [
        daemon.command().unwrap().output().unwrap(),
        coracle(&["config", "check", "--config", file]),
        coracle(&["config", "check", drop_in]),
    ] {
        assert!(!output.status.success());
        let place = format!("{drop_in}:2: log.levle is not a setting");
        assert!(
            text(&output.stderr).contains(&place),
            "{}",
            text(&output.stderr)
        );
    }
    assert!(coracle(&["config", "check", file]).status.success());
    daemon.abandon();
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
        let printed = text(&output.stderr) + &text(&output.stdout);
        let place = format!("config.toml:{line}");
        for expected in [place.as_str(), "compile_timout_s", "compile_timeout_s"] {
            assert!(printed.contains(expected), "no {expected:?} in: {printed}");
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
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    for expected in [
        "PullImage",
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
        "ms",
    ] {
        assert!(printed.contains(expected), "no {expected} in:\n{printed}");
    }
}
