//! Which namespaces are a container's own, the pod's, another container's or the node's.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::is_alive;
use cri::NamespaceMode::{self, Node, Target};

use super::shell::{
    daemon, host_pid, look, namespace, namespaces, on_peer, pod_security, program, run, security,
    sh,
};
use crate::site::{Pod, eventually};

/// A pod whose pid namespace is of this mode, and a maker of containers that fit in.
async fn pod_with_pid(daemon: &Daemon, name: &str, mode: NamespaceMode) -> Pod {
    let mut config = daemon.pod(name);
    let options = pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap();
    options.pid = mode as i32;
    Pod::run_config(daemon, config).await
}

fn with_pid(mut config: cri::ContainerConfig, mode: NamespaceMode) -> cri::ContainerConfig {
    namespaces(&mut config).pid = mode as i32;
    config
}

#[tokio::test]
async fn mount_and_pid_are_a_containers_own_and_the_rest_its_pods() {
    let daemon = daemon().await;
    let (one, two) = (
        Pod::run(&daemon, "one").await,
        Pod::run(&daemon, "two").await,
    );
    let a = look(&daemon, &one, program("a", &[])).await;
    let b = look(&daemon, &one, program("b", &[])).await;
    let c = look(&daemon, &two, program("c", &[])).await;
    for kind in ["ns.net", "ns.ipc", "ns.uts"] {
        assert_eq!(a[kind], b[kind], "{kind}");
        assert_ne!(a[kind], c[kind], "{kind}");
    }
    for kind in ["ns.user", "ns.time"] {
        assert_eq!(a[kind], namespace("self", kind.trim_start_matches("ns.")));
    }
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        assert_ne!(a[&format!("ns.{kind}")], namespace("self", kind), "{kind}");
    }
    assert_eq!(a["hostname"], "one");
    assert!(a["pid"].starts_with("1 parent 0"), "{}", a["pid"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn containers_of_a_pod_share_its_shm_its_queues_and_its_loopback() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "shared").await;
    let server = sh(
        "server",
        "echo hi > /dev/shm/file; mkdir /dev/mqueue/q 2>/dev/null; touch /dev/mqueue/queue; \
         echo answer > /tmp/index.html; httpd -p 127.0.0.1:80 -h /tmp; echo ready; exec sleep 100",
    );
    pod.start(&server).await;
    pod.wait_log(&daemon, "server", "ready").await;
    let client = sh(
        "client",
        "cat /dev/shm/file; ls /dev/mqueue; wget -q -O - http://127.0.0.1/index.html; df -k /dev/shm | tail -1 | awk '{print $2}'",
    );
    let lines = ["hi", "queue", "answer", "65536"];
    run(&daemon, &pod, &client).await.says(&lines);
    // Another pod has its own.
    let other = Pod::run(&daemon, "other").await;
    let mut script = sh(
        "c",
        "ls /dev/shm /dev/mqueue/queue; wget -q -T 1 -O - http://127.0.0.1/",
    );
    script.args.clear();
    let ran = run(&daemon, &other, &script).await;
    assert!(
        ran.status.exit_code != 0 && !ran.out.contains("file"),
        "{}",
        ran.out
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_shared_pid_namespace_shows_all_reaps_orphans_and_lives_on() {
    let daemon = daemon().await;
    let pod = pod_with_pid(&daemon, "together", NamespaceMode::Pod).await;
    let mode = NamespaceMode::Pod;
    let first = pod
        .start(&with_pid(program("first", &["sleep", "1111"]), mode))
        .await;
    let second = pod
        .start(&with_pid(program("second", &["sleep", "2222"]), mode))
        .await;
    let script = "[ $$ != 1 ] && echo not first; ps | grep -c '[s]leep [12][12][12][12]$'; \
                  sh -c 'sleep 0.05 & exit'; sleep 0.3; ps -o stat | grep -c '^Z'; kill -0 1 && echo sees init; \
                  readlink /proc/self/ns/pid";
    let ran = run(&daemon, &pod, &with_pid(sh("third", script), mode)).await;
    let lines: Vec<_> = ran.out.lines().collect();
    // The peer's sandbox image is a program of ours that reaps nothing.
    let zombies = if on_peer() { "1" } else { "0" };
    assert_eq!(
        lines[..4],
        ["not first", "2", zombies, "sees init"],
        "{}",
        ran.err
    );
    let (one, two) = (
        host_pid(&daemon, "sleep 1111"),
        host_pid(&daemon, "sleep 2222"),
    );
    assert_eq!(namespace(&two.to_string(), "pid"), lines[4]);
    // One ends by the other's hand; the other stays, and new ones can come.
    let script =
        "for p in /proc/[0-9]*; do grep -q [1]111 $p/cmdline && kill -9 ${p#/proc/}; done; :";
    let killer = with_pid(sh("killer", script), mode);
    run(&daemon, &pod, &killer).await;
    assert_eq!(pod.cri.wait_exit(&first).await.unwrap().exit_code, 137);
    assert!(!is_alive(one) && is_alive(two));
    pod.cri.stop(&second, 0).await.unwrap();
    assert!(!is_alive(two));
    run(
        &daemon,
        &pod,
        &with_pid(program("late", &["/bin/true"]), mode),
    )
    .await
    .ok();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stopping_one_of_a_shared_namespace_ends_all_of_it_and_nothing_else() {
    let daemon = daemon().await;
    let pod = pod_with_pid(&daemon, "neighbours", NamespaceMode::Pod).await;
    let mode = NamespaceMode::Pod;
    let script = "setsid sleep 3331 & setsid sleep 3332 & echo ready; exec sleep 3333";
    let id = pod.start(&with_pid(sh("family", script), mode)).await;
    pod.start(&with_pid(program("other", &["sleep", "4444"]), mode))
        .await;
    pod.wait_log(&daemon, "family", "ready").await;
    eventually("the children run", || {
        let found = coracle_tests::procs::of_scratch(daemon.scratch());
        found
            .iter()
            .filter(|process| process.command.starts_with("sleep 333"))
            .count()
            == 3
    })
    .await;
    let pids = ["sleep 3331", "sleep 3332", "sleep 3333"].map(|command| host_pid(&daemon, command));
    let other = host_pid(&daemon, "sleep 4444");
    pod.cri.stop(&id, 0).await.unwrap();
    eventually("its processes end", || {
        pids.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    assert!(is_alive(other));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_can_look_into_another_ones_processes() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "target").await;
    let target = pod.start(&program("target", &["sleep", "5555"])).await;
    let mut config = sh(
        "debugger",
        "cat /proc/1/cmdline | tr '\\0' ' '; echo; cat /proc/1/root/etc/motd; [ $$ != 1 ] && echo second",
    );
    namespaces(&mut config).pid = Target as i32;
    namespaces(&mut config).target_id = target.clone();
    // To look into another's root takes the right to trace it.
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_PTRACE".into()],
        ..Default::default()
    });
    run(&daemon, &pod, &config)
        .await
        .says(&["sleep 5555 ", "upper", "second"]);
    let mut config = program("lost", &["/bin/true"]);
    namespaces(&mut config).pid = Target as i32;
    namespaces(&mut config).target_id = "no-such-container".into();
    assert!(pod.create(&config).await.is_err());
    // Its end is the end of whoever looked in.
    let mut config = program("watcher", &["sleep", "6666"]);
    namespaces(&mut config).pid = Target as i32;
    namespaces(&mut config).target_id = target.clone();
    let watcher = pod.start(&config).await;
    pod.cri.stop(&target, 0).await.unwrap();
    assert_eq!(pod.cri.wait_exit(&watcher).await.unwrap().exit_code, 137);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_nodes_namespaces_are_shared_when_requested() {
    let daemon = daemon().await;
    let mut config = daemon.pod("node");
    config.hostname.clear();
    let options = pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap();
    (options.pid, options.ipc, options.network) = (Node as i32, Node as i32, Node as i32);
    let pod = Pod::run_config(&daemon, config).await;
    let on_node = |mut config: cri::ContainerConfig| {
        let options = namespaces(&mut config);
        (options.pid, options.ipc, options.network) = (Node as i32, Node as i32, Node as i32);
        config
    };
    let facts = look(&daemon, &pod, on_node(program("c", &[]))).await;
    for kind in ["pid", "ipc", "net", "uts"] {
        assert_eq!(
            facts[&format!("ns.{kind}")],
            namespace("self", kind),
            "{kind}"
        );
    }
    assert_ne!(facts["ns.mnt"], namespace("self", "mnt"));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(facts["hostname"], hostname.trim());
    // It ends like any other, with all it started.
    let id = pod
        .start(&on_node(sh(
            "stays",
            "setsid sleep 7771 & echo ready; exec sleep 7772",
        )))
        .await;
    pod.wait_log(&daemon, "stays", "ready").await;
    eventually("the child runs", || {
        let found = coracle_tests::procs::of_scratch(daemon.scratch());
        found.iter().any(|process| process.command == "sleep 7771")
    })
    .await;
    let pids = ["sleep 7771", "sleep 7772"].map(|command| host_pid(&daemon, command));
    pod.cri.stop(&id, 0).await.unwrap();
    eventually("its processes end", || {
        pids.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    daemon.finish().await.unwrap();
}

/// The kernel shows everybody who sees a process its network, whatever else protects it.
#[tokio::test]
async fn no_process_of_a_shared_pid_namespace_shows_the_nodes_network() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("0100007F:{:04X}", listener.local_addr().unwrap().port());
    let node = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    assert!(node.contains(&port), "{node}");
    let script =
        format!("cat /proc/1/cmdline; echo; grep -l {port} /proc/[0-9]*/net/tcp; echo end");
    let plain = pod_with_pid(&daemon, "plain", NamespaceMode::Pod).await;
    let mut config = super::users::in_userns(&daemon, "mapped", 700_000);
    let options = pod_security(&mut config).namespace_options.as_mut();
    options.unwrap().pid = NamespaceMode::Pod as i32;
    let options = pod_security(&mut config).namespace_options.clone();
    let mapped = Pod::run_config(&daemon, config).await;
    let mut inside = sh("c", &script);
    security(&mut inside).namespace_options = options;
    let outside = with_pid(sh("c", &script), NamespaceMode::Pod);
    for (pod, container) in [(plain, outside), (mapped, inside)] {
        let out = run(&daemon, &pod, &container).await.ok();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("coracle pause"), "{lines:?}");
        assert_eq!(lines[1..], ["end"], "{lines:?}");
    }
    daemon.finish().await.unwrap();
}
