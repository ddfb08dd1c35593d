//! Devices: which nodes can be opened, which cannot even when they can be made.

use coracle_proto::runtime::v1 as cri;
use tonic::Code;

use super::shell::{daemon, fresh, on_peer, program, run, run_sh, sh};
use crate::site::{Pod, refused};

fn device(host: &str, inside: &str, permissions: &str) -> cri::Device {
    cri::Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: permissions.into(),
    }
}

#[tokio::test]
async fn a_device_can_be_made_but_only_listed_ones_opened() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "devices").await;
    let script = "n() { probe try node $1 $2 $3 /tmp/n; }; n c 1 3; n c 1 5; n c 1 8; n c 1 9; \
                  n b 8 0; n b 259 0; n b 7 0; n c 1 1; n c 1 2; n c 1 11; n c 10 229; n c 10 237; n c 4 64; n c 5 1";
    let mut lines = vec!["node: ok"; 4];
    // The last is the node's own console.
    lines.extend(["node: EPERM"; 10]);
    run_sh(&daemon, &pod, script).await.says(&lines);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_device_that_cri_asks_for_is_there_with_its_permissions() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "asked").await;
    let mut config = sh(
        "c",
        "stat -c '%F %t:%T' /dev/kmsg /dev/of/mine; probe try open-r /dev/kmsg; probe try open-w /dev/kmsg; \
         probe try node c 1 11 /tmp/other; probe try node c 1 1 /tmp/mem",
    );
    // The kernel wants the capability on top, where it hides its log.
    super::shell::security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYSLOG".into()],
        ..Default::default()
    });
    config.devices = vec![
        device("/dev/kmsg", "/dev/kmsg", "r"),
        device("/dev/null", "/dev/of/mine", "rwm"),
    ];
    run(&daemon, &pod, &config).await.says(&[
        "character special file 1:b",
        "character special file 1:3",
        "open-r: ok",
        "open-w: EPERM",
        "node: ok",
        "node: EPERM",
    ]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_directory_of_devices_is_all_its_nodes() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "tree").await;
    // A directory of nodes of the tests' own, since what the node has varies.
    let dir = super::shell::host_dir(&daemon, "nodes");
    for (name, minor) in [("a", "3"), ("b", "5")] {
        let mut mknod = std::process::Command::new("mknod");
        let made = mknod.arg(dir.join(name)).args(["c", "1", minor]).status();
        assert!(made.unwrap().success());
    }
    let mut config = sh("c", "ls /dev/tree; stat -c %t:%T /dev/tree/b");
    config.devices = vec![device(&dir.display().to_string(), "/dev/tree", "rw")];
    run(&daemon, &pod, &config).await.says(&["a", "b", "1:5"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn devices_that_cannot_be_are_refused_by_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "bad").await;
    let cases = [
        (
            device("/dev/no-such-device", "/dev/x", "rw"),
            "/dev/no-such-device",
        ),
        (device("/etc/passwd", "/dev/x", "rw"), "/etc/passwd"),
        (device("/dev/null", "/dev/x", "rwz"), "permissions"),
        (device("/dev/null", "relative", "rw"), "container_path"),
    ];
    for (bad, expected) in cases {
        let mut config = program(&fresh("c"), &["/bin/true"]);
        config.devices = vec![bad];
        let refusal = match pod.create(&config).await {
            Ok(id) => pod.cri.start(&id).await.map(|()| id),
            Err(refusal) => Err(refusal),
        };
        if !on_peer() {
            refused(refusal, Code::InvalidArgument, &[expected]);
        }
    }
    daemon.finish().await.unwrap();
}

/// The node has a number of them for all containers.
#[tokio::test]
async fn a_container_does_not_take_all_terminals_of_the_node() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "terminals").await;
    let out = run(&daemon, &pod, &program("c", &["probe", "try", "terminals"]))
        .await
        .ok();
    assert_eq!(out, "terminals: 256, then ENOSPC\n");
    daemon.finish().await.unwrap();
}
