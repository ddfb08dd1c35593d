//! Wasm and Linux containers in one pod, and Linux containers when daemon or keeper die.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::Options;
use coracle_tests::procs::{self, Role, is_alive};

use super::shell::{
    daemon, daemon_with, host_dir, host_pid, mount, namespace, namespaces as namespaces_of,
    on_peer, pod_security, program, run, run_sh, sh,
};
use crate::site::{Pod, eventually, tool};

#[tokio::test]
async fn a_linux_and_a_wasm_container_share_a_volume_and_the_network() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "mixed").await;
    let dir = host_dir(&daemon, "common");
    let mut wasm = client::container(
        "wasm",
        tool(),
        &["write", "/common/from-wasm", "hello from wasm"],
    );
    wasm.mounts = vec![mount(&dir, "/common", false)];
    let (status, _) = pod.finish(&daemon, &wasm).await;
    assert_eq!(status.exit_code, 0, "{}", status.message);
    let mut linux = sh(
        "linux",
        "cat /common/from-wasm; echo; stat -c '%u %g' /common/from-wasm; echo hello from linux > /common/from-linux",
    );
    linux.mounts = vec![mount(&dir, "/common", false)];
    run(&daemon, &pod, &linux)
        .await
        .says(&["hello from wasm", "0 0"]);
    let mut wasm = client::container("reader", tool(), &["read", "/common/from-linux"]);
    wasm.mounts = vec![mount(&dir, "/common", true)];
    let (status, text) = pod.finish(&daemon, &wasm).await;
    assert_eq!((status.exit_code, text.trim_end()), (0, "hello from linux"));

    pod.start(&program("sleeper", &["sleep", "9991"])).await;
    let before: Vec<i32> = daemon
        .processes(Role::Guest)
        .iter()
        .map(|guest| guest.pid)
        .collect();
    pod.start(&client::container("guest", tool(), &["sleep"]))
        .await;
    pod.wait_log(&daemon, "guest", "sleeping").await;
    let guests = daemon.processes(Role::Guest);
    let guest = guests
        .iter()
        .find(|guest| !before.contains(&guest.pid))
        .unwrap()
        .pid;
    let linux = host_pid(&daemon, "sleep 9991");
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(
            namespace(&guest.to_string(), kind),
            namespace(&linux.to_string(), kind),
            "{kind}"
        );
    }
    let script = "echo over loopback > /tmp/index.html; httpd -p 127.0.0.1:8080 -h /tmp; \
                  wget -q -O - http://127.0.0.1:8080/index.html";
    run_sh(&daemon, &pod, script).await.says(&["over loopback"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_daemons_death_is_nothing_to_a_linux_container() {
    if on_peer() {
        // Its logs go through the daemon.
        return;
    }
    let mut daemon = daemon().await;
    let pod = Pod::run(&daemon, "orphaned").await;
    let dir = host_dir(&daemon, "go");
    let mut config = sh(
        "c",
        "echo before; while [ ! -e /go/now ]; do sleep 0.02; done; echo after; exit 6",
    );
    config.mounts = vec![mount(&dir, "/go", false)];
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "c", "before").await;
    let other = pod.start(&program("other", &["sleep", "9992"])).await;
    let sleeper = host_pid(&daemon, "sleep 9992");
    daemon.kill();
    std::fs::write(dir.join("now"), "").unwrap();
    pod.wait_log(&daemon, "c", "after").await;
    daemon.restart().await.unwrap();
    let status = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
    assert!(is_alive(sleeper));
    pod.cri.stop(&other, 0).await.unwrap();
    assert!(!is_alive(sleeper));
    run_sh(&daemon, &pod, "echo new").await.says(&["new"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_keepers_death_ends_its_linux_containers_and_no_others() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let (lost, kept) = (
        Pod::run(&daemon, "lost").await,
        Pod::run(&daemon, "kept").await,
    );
    let keepers = daemon.processes(Role::Keeper);
    let keeper = keepers
        .iter()
        .find(|keeper| keeper.command.contains(&lost.id))
        .unwrap()
        .pid;
    let script = "setsid sleep 9993 & echo line; exec sleep 9994";
    let id = lost.start(&sh("c", script)).await;
    lost.wait_log(&daemon, "c", "line").await;
    kept.start(&program("c", &["sleep", "9995"])).await;
    eventually("the child runs", || {
        procs::of_scratch(daemon.scratch())
            .iter()
            .any(|process| process.command == "sleep 9993")
    })
    .await;
    let doomed = ["sleep 9993", "sleep 9994"].map(|command| host_pid(&daemon, command));
    let safe = host_pid(&daemon, "sleep 9995");
    procs::kill(keeper);
    eventually("its containers end", || {
        doomed.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    let status = lost.cri.wait_exit(&id).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "KeeperLost")
    );
    assert!(is_alive(safe));
    assert_eq!(daemon.output("lost", "c", "stdout").unwrap(), "line\n");
    daemon.finish().await.unwrap();
}

/// systemd makes every mount of a node shared; what copies such a mount is its peer until it is told otherwise.
#[tokio::test]
async fn pods_of_both_kinds_live_on_a_node_whose_mounts_are_shared() {
    if on_peer() {
        return;
    }
    let options = Options {
        shared_mounts: true,
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let pod = Pod::run(&daemon, "shared-mounts").await;
    let dir = host_dir(&daemon, "volume");
    let mut writer = sh(
        "writer",
        "echo from-linux >/common/greeting; exec sleep 1000",
    );
    writer.mounts = vec![mount(&dir, "/common", false)];
    let linux = pod.start(&writer).await;
    let greeting = dir.join("greeting");
    eventually("the volume is written to", || {
        std::fs::read_to_string(&greeting).is_ok_and(|text| text == "from-linux\n")
    })
    .await;
    let wasm = pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    // Nor is anything that a container has of the node a peer of the node's, its shared memory included.
    let mut of_node = daemon.pod("node-memory");
    let namespaces = pod_security(&mut of_node)
        .namespace_options
        .get_or_insert_default();
    namespaces.ipc = cri::NamespaceMode::Node as i32;
    let of_node = Pod::run_config(&daemon, of_node).await;
    let mut looks = sh(
        "looks",
        "grep -c /dev/shm /proc/self/mountinfo; grep shared: /proc/self/mountinfo",
    );
    namespaces_of(&mut looks).ipc = cri::NamespaceMode::Node as i32;
    let (_, seen) = of_node.finish(&daemon, &looks).await;
    assert_eq!(seen, "1\n");
    for container in [&linux, &wasm] {
        pod.cri.stop(container, 0).await.unwrap();
    }
    daemon.finish().await.unwrap();
}
