//! A container that sees the node's processes gets nothing out of those of the runtime, however short they live.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_proto::runtime::v1::{self as cri, NamespaceMode};
use coracle_tests::client;
use coracle_tests::daemon::Daemon;

use super::canary::Canary;
use crate::exec::exec;
use crate::linux::shell::{
    daemon, host_dir, mount, namespaces, on_peer, pod_security, program, security,
};
use crate::site::{Pod, tool};

/// Starts of pods and containers, and execs, while the scanner looks.
const STARTS: usize = 1000;
/// Pods at a time.
const AT_ONCE: usize = 4;

/// T01, T03 and what DESIGN calls non-dumpable: holders of namespaces, half-built containers and execs included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scanner_among_the_nodes_processes_reaches_nothing_of_the_runtime() {
    if on_peer() {
        return;
    }
    let daemon = Arc::new(daemon().await);
    let canary = Canary::plant(&daemon);
    let secret = daemon.scratch().dir().join("root/secret");
    std::fs::write(&secret, "root only").unwrap();
    let mut config = daemon.pod("scanner");
    let options = pod_security(&mut config).namespace_options.as_mut();
    options.unwrap().pid = NamespaceMode::Node as i32;
    let pod = Pod::run_config(&daemon, config).await;
    let command = ["/bin/probe", "scan", &*secret.to_string_lossy(), "node"];
    let mut scanner = program("scan", &command);
    namespaces(&mut scanner).pid = NamespaceMode::Node as i32;
    let stop = host_dir(&daemon, "stop");
    scanner.mounts = vec![mount(&stop, "/tmp", false)];
    let id = pod.start(&scanner).await;
    pod.wait_log(&daemon, "scan", "scanning").await;
    let starts = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|lane| tokio::spawn(churn(Arc::clone(&daemon), Arc::clone(&starts), lane)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    std::fs::write(stop.join("enough"), "").unwrap();
    pod.cri.wait_exit(&id).await.unwrap();
    let found = daemon.output("scanner", "scan", "stdout").unwrap();
    let reached: Vec<_> = found.lines().filter(|l| l.starts_with("reached")).collect();
    assert!(
        reached.is_empty(),
        "{} times: {:?}",
        reached.len(),
        &reached[..reached.len().min(20)]
    );
    let summary = found.lines().last().unwrap();
    let ours = summary.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(
        ours > 100,
        "the scanner must have seen processes of ours: {summary}"
    );
    std::fs::remove_file(&secret).unwrap();
    canary.is_untouched(&daemon).await;
    Arc::into_inner(daemon).unwrap().finish().await.unwrap();
}

/// Runs pods of every kind, one after the other, until enough was started.
async fn churn(daemon: Arc<Daemon>, starts: Arc<AtomicUsize>, lane: usize) {
    let mut round = lane;
    while starts.load(Ordering::Relaxed) < STARTS {
        let name = format!("churn-{lane}-{round}");
        let count = one_pod(&daemon, &name, (lane, round % 4)).await;
        starts.fetch_add(count, Ordering::Relaxed);
        round += 1;
    }
}

/// One pod with its containers and execs; how many starts that was.
async fn one_pod(daemon: &Daemon, name: &str, (lane, kind): (usize, usize)) -> usize {
    let mut config = match kind {
        // No two pods have an id in common.
        0 => crate::linux::users::in_userns(daemon, name, 700_000 + 65_536 * lane as u32),
        _ => daemon.pod(name),
    };
    let options = pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap();
    if kind <= 1 {
        // Both kinds of shared processes: in a user namespace and without one.
        options.pid = NamespaceMode::Pod as i32;
    }
    let options = options_of(&config).clone();
    let pod = Pod::run_config(daemon, config).await;
    let wasm = client::container("wasm", tool(), &["sleep", "100"]);
    let mut linux = program("linux", &["sleep", "100"]);
    *namespaces(&mut linux) = options;
    let mut started = 1;
    let wasm_too = kind != 0;
    for container in [Some(linux), wasm_too.then_some(wasm)]
        .into_iter()
        .flatten()
    {
        let id = pod.start(&container).await;
        let command: &[&str] = match container.metadata.unwrap().name.as_str() {
            "linux" => &["true"],
            _ => &["tool", "exit", "0"],
        };
        exec(&pod, &id, command, 20).await.unwrap();
        started += 2;
    }
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    started
}

fn options_of(config: &cri::PodSandboxConfig) -> &cri::NamespaceOption {
    let linux = config.linux.as_ref().unwrap();
    let security = linux.security_context.as_ref().unwrap();
    security.namespace_options.as_ref().unwrap()
}

/// A container that may look into its siblings' processes (SYS_PTRACE) never sees one that sees the node: neither while it
/// is built nor while an exec is on its way.
#[tokio::test]
async fn a_sibling_that_may_trace_sees_no_process_with_the_nodes_files() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let secret = daemon.scratch().dir().join("root/secret");
    std::fs::write(&secret, "root only").unwrap();
    let secret = secret.to_string_lossy().into_owned();
    let mut config = daemon.pod("family");
    let options = pod_security(&mut config).namespace_options.as_mut();
    options.unwrap().pid = NamespaceMode::Pod as i32;
    let pod = Pod::run_config(&daemon, config).await;
    let stop = host_dir(&daemon, "stop");
    let mut tracer = program("scan", &["/bin/probe", "scan", &secret, "pod"]);
    tracer.mounts = vec![mount(&stop, "/tmp", false)];
    namespaces(&mut tracer).pid = NamespaceMode::Pod as i32;
    security(&mut tracer).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_PTRACE".into()],
        ..Default::default()
    });
    let scanning = pod.start(&tracer).await;
    pod.wait_log(&daemon, "scan", "scanning").await;
    let host = pod.start(&with_pid("host", NamespaceMode::Pod, "")).await;
    for round in 0..60 {
        let (mode, target) = match round % 2 {
            0 => (NamespaceMode::Pod, ""),
            _ => (NamespaceMode::Target, &*host),
        };
        let id = pod
            .start(&with_pid(&format!("c{round}"), mode, target))
            .await;
        exec(&pod, &id, &["true"], 20).await.unwrap();
        pod.cri.stop(&id, 0).await.unwrap();
    }
    std::fs::write(stop.join("enough"), "").unwrap();
    pod.cri.wait_exit(&scanning).await.unwrap();
    let found = daemon.output("family", "scan", "stdout").unwrap();
    let reached: Vec<_> = found.lines().filter(|l| l.contains(&secret)).collect();
    assert!(reached.is_empty(), "{reached:?}");
    assert!(found.contains("looked"), "{found}");
    std::fs::remove_file(&secret).unwrap();
    daemon.finish().await.unwrap();
}

/// A sleeper in a pid namespace that others share.
fn with_pid(name: &str, mode: NamespaceMode, target: &str) -> cri::ContainerConfig {
    let mut config = program(name, &["sleep", "1000"]);
    let options = namespaces(&mut config);
    options.pid = mode as i32;
    options.target_id = target.into();
    config
}
