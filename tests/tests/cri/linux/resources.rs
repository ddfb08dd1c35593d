//! Limits: memory and its end, processes, processor shares, the OOM score.

use std::path::Path;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Options;
use coracle_tests::scratch::Scratch;

use super::shell::{daemon, host_pid, look, on_peer, program, resources, run, sh};
use crate::site::Pod;
use crate::update::update;

/// The value of a cgroup file of the process: `controller` names the v1 hierarchy.
fn cgroup_value(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let names = parts.next()?.split(',').any(|name| name == controller);
        names.then(|| parts.next().unwrap_or_default().to_owned())
    };
    let path = match text.lines().find_map(of) {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
        None => format!(
            "/sys/fs/cgroup{}/{v2}",
            text.trim().trim_start_matches("0::")
        ),
    };
    std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .trim()
        .to_owned()
}

fn is_v1(_: &Scratch) -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[tokio::test]
async fn limits_are_the_kernels_values() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "limits").await;
    let mut config = program("c", &["sleep", "8881"]);
    let wanted = resources(&mut config);
    wanted.cpu_shares = 512;
    wanted.cpu_quota = 50_000;
    wanted.cpu_period = 100_000;
    wanted.memory_limit_in_bytes = 96 << 20;
    wanted.cpuset_cpus = "0".into();
    wanted.oom_score_adj = 800;
    pod.start(&config).await;
    let pid = host_pid(&daemon, "sleep 8881");
    let memory = cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (96 << 20).to_string());
    assert_eq!(
        cgroup_value(pid, "cpuset", "cpuset.cpus", "cpuset.cpus"),
        "0"
    );
    if is_v1(daemon.scratch()) {
        assert_eq!(cgroup_value(pid, "cpu", "cpu.shares", ""), "512");
        assert_eq!(cgroup_value(pid, "cpu", "cpu.cfs_quota_us", ""), "50000");
        assert_eq!(cgroup_value(pid, "cpu", "cpu.cfs_period_us", ""), "100000");
    } else {
        assert_eq!(cgroup_value(pid, "cpu", "", "cpu.max"), "50000 100000");
    }
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "800");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn running_out_of_memory_is_reported_and_harms_no_other_container() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "oom").await;
    pod.start(&program("witness", &["sleep", "8882"])).await;
    let mut config = program("c", &["/bin/probe", "eat", "200"]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 32 << 20;
    let ran = run(&daemon, &pod, &config).await;
    let ended = (ran.status.exit_code, ran.status.reason.as_str());
    assert_eq!(ended, (137, "OOMKilled"));
    let witness = host_pid(&daemon, "sleep 8882");
    assert!(coracle_tests::procs::is_alive(witness));
    run(&daemon, &pod, &program("after", &["/bin/true"]))
        .await
        .ok();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_killed_child_is_not_the_containers_end_unless_the_kernel_makes_it_so() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "child").await;
    let mut config = sh("c", "probe eat 200; echo child ended with $?; exit 0");
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 32 << 20;
    if !is_v1(daemon.scratch()) {
        // As the kubelet does unless `singleProcessOOMKill` is set.
        let unified = &mut resources(&mut config).unified;
        unified.insert("memory.oom.group".into(), "1".into());
    }
    let ran = run(&daemon, &pod, &config).await;
    if is_v1(daemon.scratch()) {
        // A container that ends by itself with 0 was not killed, whatever happened inside.
        assert_eq!(ran.status.exit_code, 0);
        assert!(ran.out.contains("child ended with 137"), "{}", ran.out);
        let completed = ran.status.reason == "Completed";
        assert!(
            completed || super::shell::on_peer(),
            "{}",
            ran.status.reason
        );
    } else {
        let ended = (ran.status.exit_code, ran.status.reason.as_str());
        assert_eq!(ended, (137, "OOMKilled"));
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_number_of_processes_is_bounded_by_the_cgroup() {
    if super::shell::on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "pids").await;
    let mut config = program("c", &["/bin/probe", "forks", "100"]);
    if is_v1(daemon.scratch()) {
        // CRI has no field for it on v1; the pod's cgroup is where the kubelet sets it.
        let parent = daemon.scratch().cgroup_dirs("pods");
        let pids = parent
            .iter()
            .find(|dir| dir.starts_with("/sys/fs/cgroup/pids"))
            .unwrap();
        std::fs::write(pids.join("pids.max"), "40").unwrap();
    } else {
        let unified = &mut resources(&mut config).unified;
        unified.insert("pids.max".into(), "20".into());
    }
    let out = run(&daemon, &pod, &config).await.ok();
    let got: u32 = out.split(['\u{20}', ':']).nth(1).unwrap().parse().unwrap();
    assert!(got < 40 && out.contains("EAGAIN"), "{out}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn no_container_has_all_processes_of_the_node() {
    if on_peer() {
        return; // Its default is no limit.
    }
    let kernel = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
        text.unwrap().trim().parse::<u64>().unwrap()
    };
    let node = kernel("threads-max").min(kernel("pid_max"));
    let usual = (node / 4).min(32_768).to_string();
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "usual").await;
    let id = pod.start(&program("c", &["sleep", "8884"])).await;
    let pid = host_pid(&daemon, "sleep 8884");
    let limit = || cgroup_value(pid, "pids", "pids.max", "pids.max");
    assert_eq!(limit(), usual);
    let memory = |linux: &mut cri::LinuxContainerResources| linux.memory_limit_in_bytes = 64 << 20;
    update(&pod.cri, &id, memory).await.unwrap();
    assert_eq!(limit(), usual);
    daemon.finish().await.unwrap();

    for (configured, expected) in [("20", "20"), ("0", "max"), ("4194304", usual.as_str())] {
        let daemon = super::shell::daemon_with(Options {
            config: format!("[handlers.coracle]\npids_limit = {configured}\n"),
            ..Options::default()
        })
        .await;
        let pod = Pod::run(&daemon, "own").await;
        pod.start(&program("c", &["sleep", "8885"])).await;
        let pid = host_pid(&daemon, "sleep 8885");
        let limit = cgroup_value(pid, "pids", "pids.max", "pids.max");
        assert_eq!(limit, expected, "pids_limit = {configured}");
        if configured == "20" {
            let forks = program("f", &["/bin/probe", "forks", "100"]);
            let out = run(&daemon, &pod, &forks).await.ok();
            let got: u32 = out.split([' ', ':']).nth(1).unwrap().parse().unwrap();
            assert!(got < 20 && out.contains("EAGAIN"), "{out}");
        }
        daemon.finish().await.unwrap();
    }
}

#[tokio::test]
async fn process_limits_are_not_the_daemons() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "rlimits").await;
    // The processes that make containers are given limits that nobody would choose.
    for process in coracle_tests::procs::of_scratch(daemon.scratch()) {
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.args(["--nofile=1777:1999", "--pid"]);
        let set = prlimit.arg(process.pid.to_string()).status();
        // A keeper's helpers come and go.
        let is_gone = !coracle_tests::procs::is_alive(process.pid);
        assert!(set.unwrap().success() || is_gone, "{process:?}");
    }
    let facts = look(&daemon, &pod, program("c", &[])).await;
    assert_ne!(facts["limit.NOFILE"], "1777 1999");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_container_lies_below_the_parent_that_was_given() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "parent").await;
    pod.start(&program("c", &["sleep", "8883"])).await;
    let pid = host_pid(&daemon, "sleep 8883");
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = format!("{}/", daemon.cgroup_parent());
    for line in text.lines() {
        let path = line.splitn(3, ':').nth(2).unwrap();
        // A version 1 container without processors of its own is in the nearest cpuset that there is.
        let is_above = line.contains(":cpuset:") && own.starts_with(&format!("{path}/"));
        // Hierarchies that nobody manages may keep it at their root.
        assert!(
            path.starts_with(&own) || path == "/" || line.starts_with("0::") || is_above,
            "{line}"
        );
    }
    assert!(text.contains(&own), "{text}");
    if on_peer() {
        // On version 1 its containers are in the node's cgroup namespace.
        return;
    }
    let facts = look(&daemon, &pod, program("inside", &[])).await;
    let inside = facts.iter().filter(|(name, _)| name.starts_with("cgroup."));
    for (_, line) in inside {
        assert!(
            !line.contains("coracle-test"),
            "the cgroup namespace shows {line}"
        );
    }
    daemon.finish().await.unwrap();
}
