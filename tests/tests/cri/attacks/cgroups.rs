//! A container's own cgroups: what it can write there, what it sees of others, what it can leave behind.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;

use crate::linux::shell::{daemon, fresh, on_peer, program, resources, run, security, sh};
use crate::site::{Pod, eventually};
use crate::update::update;

const MIB: i64 = 1 << 20;

fn is_v1() -> bool {
    fs::exists("/sys/fs/cgroup/memory").unwrap()
}

/// The files that bound a container, by the controller of v1, and what their limits are below.
fn bounds() -> Vec<(&'static str, &'static str, &'static str)> {
    match is_v1() {
        true => vec![
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.memsw.limit_in_bytes", "67108864"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "100000"),
            ("cpuset", "cpuset.cpus", "0"),
        ],
        false => vec![
            ("", "memory.max", "67108864"),
            ("", "memory.swap.max", "0"),
            ("", "cpu.max", "20000 100000"),
            ("", "cpuset.cpus", "0"),
            ("", "pids.max", "50"),
        ],
    }
}

/// A container with these limits.
fn bounded(name: &str, script: &str) -> cri::ContainerConfig {
    let mut config = sh(name, script);
    let wanted = resources(&mut config);
    wanted.memory_limit_in_bytes = 64 * MIB;
    wanted.memory_swap_limit_in_bytes = 64 * MIB;
    (wanted.cpu_quota, wanted.cpu_period) = (20_000, 100_000);
    wanted.cpuset_cpus = "0".into();
    if !is_v1() {
        wanted.unified.insert("pids.max".into(), "50".into());
    }
    config
}

/// A container's cgroup on the host, in the hierarchy of a controller.
fn on_host(daemon: &Daemon, controller: &str, id: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup").join(controller);
    root.join(daemon.cgroup_parent().trim_start_matches('/'))
        .join(id)
}

/// Those of [`bounds`] that this node has.
fn known(daemon: &Daemon, id: &str) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut known = bounds();
    known.retain(|(controller, file, _)| on_host(daemon, controller, id).join(file).exists());
    assert!(known.len() >= 4, "{known:?}");
    known
}

fn value(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Runs a script beside a container's first process; gives what it wrote.
async fn exec(pod: &Pod, id: &str, script: &str) -> String {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 10,
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.exec_sync(request).await.unwrap().into_inner();
    let err = String::from_utf8_lossy(&reply.stderr).into_owned();
    assert_eq!(reply.exit_code, 0, "{err}");
    String::from_utf8(reply.stdout).unwrap()
}

/// Mounts each hierarchy anew, as root of a user namespace, and writes whatever would widen its root.
const WIDEN: &str = "mkdir -p /tmp/c; \
    try() { test -e /tmp/c/$1 && echo $2 > /tmp/c/$1 && echo \"wrote $1\"; }; \
    for c in memory cpu cpuacct cpuset pids unified; do \
      case $c in unified) mount -t cgroup2 none /tmp/c;; *) mount -t cgroup -o $c none /tmp/c;; esac || continue; \
      echo \"mounted $c\"; \
      try memory.memsw.limit_in_bytes -1; try memory.limit_in_bytes -1; try cpu.cfs_quota_us -1; \
      try cpuset.cpus 0-1; try cpuset.sched_load_balance 0; try cpuset.sched_load_balance 1; try pids.max max; \
      try memory.swap.max max; try memory.max max; try cpu.max max; try cgroup.max.descendants max; \
      mkdir -p /tmp/c/below/deeper; umount /tmp/c; \
    done 2>/dev/null; echo end; exec sleep 1000";

/// T12 through a user namespace of the container's own: what it writes never bounds it.
#[tokio::test]
async fn a_container_that_mounts_its_cgroups_anew_keeps_its_limits() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "widen").await;
    let mut config = bounded("c", "");
    config.command = ["/bin/probe", "nest", "/bin/sh", "-c", WIDEN]
        .map(str::to_owned)
        .to_vec();
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "c", "end").await;
    let out = daemon.output("widen", "c", "stdout").unwrap();
    if !out.contains("mounted") {
        // This kernel lets nobody make a user namespace.
        assert!(out.contains("unshare: E"), "{out}");
    }
    for (controller, file, expected) in known(&daemon, &id) {
        let path = on_host(&daemon, controller, &id).join(file);
        assert_eq!(value(&path), expected, "{}\n{out}", path.display());
    }
    if is_v1() {
        let made = on_host(&daemon, "cpuset", "below");
        assert!(
            !made.exists(),
            "the container wrote to the cpuset of its pod"
        );
    }
    // What it made is no obstacle to a change, and none to its removal.
    update(&pod.cri, &id, |linux| {
        (linux.cpu_quota, linux.cpu_period) = (10_000, 100_000);
        linux.memory_limit_in_bytes = 48 * MIB;
        linux.memory_swap_limit_in_bytes = 48 * MIB;
    })
    .await
    .unwrap();
    pod.cri.stop(&id, 0).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    daemon.finish().await.unwrap();
}

/// A shell command that prints the limits as a program in the container reads them, one a line.
fn read_inside(files: &[(&str, &str, &str)]) -> String {
    let cat = |(controller, file, _): &(&str, &str, &str)| {
        format!("cat /sys/fs/cgroup/{controller}/{file}; ")
    };
    files.iter().map(cat).collect()
}

/// Runtimes of languages size themselves by these files.
#[tokio::test]
async fn programs_read_their_limits_and_later_changes_in_their_own_cgroups() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "read").await;
    for filtered in [false, true] {
        let name = fresh("c");
        let mut config = bounded(&name, "exec sleep 1000");
        if filtered {
            security(&mut config).seccomp = Some(cri::SecurityProfile::default());
        }
        let id = pod.start(&config).await;
        let files = known(&daemon, &id);
        let script = read_inside(&files);
        let first: Vec<_> = files.iter().map(|(_, _, value)| *value).collect();
        let inside = exec(&pod, &id, &script).await;
        assert_eq!(inside.lines().collect::<Vec<_>>(), first);
        let changed = |linux: &mut cri::LinuxContainerResources| {
            (linux.cpu_quota, linux.cpu_period) = (60_000, 50_000);
            linux.memory_limit_in_bytes = 128 * MIB;
            linux.memory_swap_limit_in_bytes = 128 * MIB;
            linux.cpuset_cpus = "1".into();
        };
        update(&pod.cri, &id, changed).await.unwrap();
        let on_host: Vec<_> = files
            .iter()
            .map(|(controller, file, _)| value(&on_host(&daemon, controller, &id).join(file)))
            .collect();
        assert_ne!(on_host, first);
        let inside = exec(&pod, &id, &script).await;
        assert_eq!(inside.lines().collect::<Vec<_>>(), on_host);
        // And back, below what it had.
        let lowered = |linux: &mut cri::LinuxContainerResources| {
            (linux.cpu_quota, linux.cpu_period) = (5_000, 100_000);
            linux.memory_limit_in_bytes = 32 * MIB;
            linux.memory_swap_limit_in_bytes = 32 * MIB;
            linux.cpuset_cpus = "0".into();
        };
        update(&pod.cri, &id, lowered).await.unwrap();
        let inside = exec(&pod, &id, &script).await;
        assert!(inside.starts_with("33554432\n"), "{inside}");
    }
    daemon.finish().await.unwrap();
}

/// A nested cgroup with limits of its own does not keep the kubelet from lowering those of the container.
#[tokio::test]
async fn a_nested_cgroup_stops_no_change_of_limits() {
    if !is_v1() || on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "stubborn").await;
    let script = "mkdir -p /tmp/c; mount -t cgroup -o cpu none /tmp/c && mkdir /tmp/c/n && \
        echo 20000 > /tmp/c/n/cpu.cfs_quota_us && mkdir /tmp/c/n/m && echo 15000 > /tmp/c/n/m/cpu.cfs_quota_us; \
        mkdir /tmp/s; mount -t cgroup -o cpuset none /tmp/s && mkdir /tmp/s/n && echo 0-1 > /tmp/s/n/cpuset.cpus; \
        echo end; exec sleep 1000";
    let mut config = bounded("c", "");
    resources(&mut config).cpuset_cpus = "0-1".into();
    config.command = ["/bin/probe", "nest", "/bin/sh", "-c", script]
        .map(str::to_owned)
        .to_vec();
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "c", "end").await;
    update(&pod.cri, &id, |linux| {
        (linux.cpu_quota, linux.cpu_period) = (5_000, 100_000);
        linux.cpuset_cpus = "1".into();
    })
    .await
    .unwrap();
    let own = |controller, file| value(&on_host(&daemon, controller, &id).join(file));
    assert_eq!(own("cpu", "cpu.cfs_quota_us"), "5000");
    assert_eq!(own("cpuset", "cpuset.cpus"), "1");
    daemon.finish().await.unwrap();
}

/// Containers of pods whose parent has no cpuset, as without a kubelet, see their own and no other.
#[tokio::test]
async fn no_container_sees_the_cpusets_of_others() {
    if !is_v1() || on_peer() {
        return;
    }
    let daemon = daemon().await;
    let bare = format!("{}/bare", daemon.scratch().cgroup());
    let pod = async |name: &str| {
        let mut config = daemon.pod(name);
        config
            .linux
            .as_mut()
            .unwrap()
            .cgroup_parent
            .clone_from(&bare);
        Pod::run_config(&daemon, config).await
    };
    let (first, second) = (pod("first").await, pod("second").await);
    let mut pinned = program("pinned", &["sleep", "1000"]);
    resources(&mut pinned).cpuset_cpus = "0".into();
    second.start(&pinned).await;
    let script = "cd /sys/fs/cgroup/cpuset; find . -type d; ls release_agent 2>&1; cat cpuset.cpus; \
        cat /proc/self/cgroup | grep :cpuset:";
    let all = value(Path::new("/sys/fs/cgroup/cpuset/cpuset.cpus"));
    for (name, profile) in [
        ("open", None),
        ("shut", Some(cri::SecurityProfile::default())),
    ] {
        let mut config = sh(name, script);
        security(&mut config).seccomp = profile;
        let out = run(&daemon, &first, &config).await.ok();
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 4, "{out}");
        assert_eq!((lines[0], lines[2]), (".", all.as_str()), "{out}");
        assert!(lines[1].contains("No such file"), "{out}");
        assert!(lines[3].ends_with(":cpuset:/"), "{out}");
    }
    // Parents stay, as those of a kubelet do; this one is the test's.
    daemon.cri().remove_all_pods().await.unwrap();
    for parent in daemon.scratch().cgroup_dirs("bare") {
        let _ = fs::remove_dir(parent);
    }
    daemon.finish().await.unwrap();
}

/// A container whose cgroups are nested deeper than a path can name goes as any other.
#[tokio::test]
async fn a_container_with_deeply_nested_cgroups_is_stopped_and_removed() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "deep").await;
    let script = "mkdir -p /tmp/c; for c in pids freezer memory unified; do \
        case $c in unified) mount -t cgroup2 none /tmp/c;; *) mount -t cgroup -o $c none /tmp/c;; esac || continue; \
        echo \"$c $(probe chain /tmp/c 2200)\"; umount -l /tmp/c; done 2>/dev/null; echo end; exec sleep 1000";
    let mut config = program("c", &["/bin/probe", "nest", "/bin/sh", "-c", script]);
    security(&mut config).seccomp = None;
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "c", "end").await;
    let out = daemon.output("deep", "c", "stdout").unwrap();
    if is_v1() {
        assert!(out.contains("pids 2200"), "{out}");
    }
    let unified = out.lines().find_map(|line| line.strip_prefix("unified "));
    if let Some(depth) = unified {
        assert!(depth.parse::<u32>().unwrap() < 40, "{out}");
    }
    pod.cri.stop(&id, 0).await.unwrap();
    // Each attempt takes away what it can in a second; a kubelet asks again.
    let mut removed = pod.cri.remove(&id).await;
    for _ in 0..30 {
        if removed.is_err() {
            removed = pod.cri.remove(&id).await;
        }
    }
    removed.unwrap();
    let is_gone = || !on_host(&daemon, if is_v1() { "pids" } else { "" }, &id).exists();
    eventually("the cgroup is gone", is_gone).await;
    daemon.finish().await.unwrap();
}
