//! Containers that cannot be started: StartContainer fails, the container has exited, and its status has the reason.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use cri::ContainerState::ContainerExited;

use super::shell::{daemon, images, on_peer, program, run, sh};
use crate::site::{Pod, failing_daemon, tool};

/// Starts what cannot start; gives the refusal's text and the container's status.
pub async fn start_failing(
    pod: &Pod,
    config: &cri::ContainerConfig,
) -> (String, cri::ContainerStatus) {
    let id = pod.create(config).await.unwrap();
    let refusal = pod
        .cri
        .start(&id)
        .await
        .expect_err("it should not have started");
    let status = pod.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerExited);
    assert!(status.finished_at > 0 && status.started_at >= 0);
    (refusal.message().to_owned(), status)
}

#[tokio::test]
async fn a_program_that_is_not_there_or_not_one_is_a_start_error() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "unstartable").await;
    for (name, command, code, expected) in [
        ("absent", "/bin/absent", 127, "/bin/absent"),
        ("not-in-path", "absent", 127, "absent"),
        (
            "not-executable",
            "/etc/not-a-program",
            126,
            "/etc/not-a-program",
        ),
        ("directory", "/etc", 126, "/etc"),
    ] {
        let (text, status) = start_failing(&pod, &program(name, &[command])).await;
        assert!(text.contains(expected), "{text}");
        assert_eq!(status.reason, "StartError", "{name}");
        // Debian's containerd says 128 for all of them.
        let code = if on_peer() { 128 } else { code };
        assert_eq!(status.exit_code, code, "{name}: {text}");
        assert!(status.message.contains(expected), "{}", status.message);
    }
    let again = run(&daemon, &pod, &program("after", &["/bin/true"])).await;
    again.ok();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_script_or_program_without_its_interpreter_is_a_start_error() {
    if on_peer() {
        // runc has called it started by the time the kernel refuses.
        return;
    }
    let daemon = daemon().await;
    let layer = coracle_tests::linux::Layer::default()
        .file("bin/script", 0o755, b"#!/no/such/interpreter\n")
        .unwrap()
        .file("bin/garbage", 0o755, b"\x7fELF and then nothing of it")
        .unwrap();
    let mut layers = coracle_tests::linux::base_layers().unwrap();
    layers.push(layer.tar().unwrap());
    let config = serde_json::json!({"Env": ["PATH=/bin"]});
    let image = coracle_tests::linux::image(&layers, config).unwrap();
    let reference = super::shell::push("linux-broken", &image).reference;
    daemon.cri().pull(&reference).await.unwrap();
    let pod = Pod::run(&daemon, "broken").await;
    for (name, code) in [("script", 127), ("garbage", 126)] {
        let mut config = program(name, &[&format!("/bin/{name}")]);
        config.image = Some(coracle_tests::client::image(&reference));
        let (text, status) = start_failing(&pod, &config).await;
        assert!(text.contains(name), "{text}");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, "StartError")
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_working_directory_that_is_none_is_a_start_error() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "nowhere").await;
    let mut config = program("file", &["/bin/true"]);
    config.working_dir = "/etc/motd".into();
    let (text, status) = start_failing(&pod, &config).await;
    assert!(text.contains("/etc/motd"), "{text}");
    assert_eq!(status.reason, "StartError");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_without_a_command_needs_one() {
    let daemon = daemon().await;
    let content = &super::shell::images().content.reference;
    daemon.cri().pull(content).await.unwrap();
    let pod = Pod::run(&daemon, "commandless").await;
    let config = coracle_tests::client::container("c", content, &[]);
    let refusal = pod.create(&config).await.unwrap_err();
    let text = refusal.message();
    assert!(
        text.contains("command") || text.contains("names a program"),
        "{text}"
    );
    daemon.finish().await.unwrap();
}

/// The process panics in a copy of its keeper's memory, whose code must not go on there.
#[tokio::test]
async fn a_container_process_that_panics_is_a_start_error() {
    if on_peer() {
        return;
    }
    let mut daemon = failing_daemon().await;
    daemon.cri().pull(&images().base.reference).await.unwrap();
    daemon.rebase();
    let pod = Pod::run(&daemon, "panics").await;
    daemon.plan("guest.jail panic\n").unwrap();
    for config in [container("wasm", tool(), &["sleep"]), sh("linux", "exit 0")] {
        let (text, status) = start_failing(&pod, &config).await;
        assert!(text.contains("panicked, which is a bug"), "{text}");
        assert!(text.contains("a failpoint says so"), "{text}");
        let ended = (status.exit_code, status.reason.as_str());
        assert_eq!(ended, (128, "StartError"), "{text}");
    }
    daemon.plan("").unwrap();
    let after = container("after", tool(), &["exit", "3"]);
    let (status, _) = pod.finish(&daemon, &after).await;
    assert_eq!(status.exit_code, 3, "the keeper works on");
    daemon.finish().await.unwrap();
}
