//! What a container must not have, and what must not be reachable from others: T10 to T15, T17.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use coracle_tests::oracle::Facts;
use coracle_tests::procs;
use rustix::fs::Gid;

use super::canary::{Canary, hostile};
use crate::linux::shell::{
    daemon, facts, fresh, on_peer, pod_security, program, run, run_sh, security, sh,
};
use crate::site::Pod;

/// Runs the probe beside a container's first process; gives what it saw.
async fn exec(pod: &Pod, id: &str) -> Facts {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: vec!["/bin/probe".into(), "look".into()],
        timeout: 10,
    };
    let reply = pod
        .cri
        .runtime
        .clone()
        .exec_sync(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        reply.exit_code,
        0,
        "{}",
        String::from_utf8_lossy(&reply.stderr)
    );
    let text = String::from_utf8(reply.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    assert!(
        last.contains("path./proc/kallsyms"),
        "the output of an exec that ended with 0 ends after {} bytes with {last:?}",
        text.len()
    );
    facts(&text)
}

type Change = fn(&mut cri::ContainerConfig);

/// The kinds of containers whose execs are held against their first process.
fn kinds() -> [(&'static str, Change); 5] {
    [
        ("plain", |_| {}),
        ("user", |c| {
            security(c).run_as_user = Some(cri::Int64Value { value: 1000 });
            security(c).supplemental_groups = vec![4321];
        }),
        ("filtered", |c| {
            security(c).no_new_privs = true;
            security(c).seccomp = Some(cri::SecurityProfile::default());
        }),
        ("dropped", |c| {
            security(c).capabilities = Some(cri::Capability {
                drop_capabilities: vec!["ALL".into()],
                ..Default::default()
            });
        }),
        ("privileged", |c| {
            security(c).privileged = true;
            security(c).masked_paths.clear();
            security(c).readonly_paths.clear();
        }),
    ]
}

/// Prefixes of the facts that an exec shares with the first process of its container.
const SAME: [&str; 28] = [
    "status.Uid",
    "status.Gid",
    "status.Groups",
    "status.Cap",
    "status.NoNewPrivs",
    "status.Seccomp",
    "status.Sig",
    "status.Umask",
    "status.Speculation",
    "ns.",
    "limit.",
    "uid_map",
    "gid_map",
    "cgroup.",
    "attr.",
    "oom_score_adj",
    "umask",
    "cwd",
    "nice",
    "securebits",
    "dumpable",
    "personality",
    "path.",
    "mount.",
    "env.",
    "node./dev/",
    "hostname",
    "affinity",
];

/// Of these, what differs between any two processes.
const VOLATILE: [&str; 5] = ["status.SigQ", "env.SHLVL", "env.PWD", "env._", "env.OLDPWD"];

/// Compares the facts of a first process with those of an exec.
fn expect_same(name: &str, first: &Facts, second: &Facts) {
    let mut compared = 0;
    for (fact, value) in first {
        let counts = SAME.iter().any(|prefix| fact.starts_with(*prefix));
        if !counts || VOLATILE.iter().any(|prefix| fact.starts_with(*prefix)) {
            continue;
        }
        // The exec may have a leaf of its own below the container's cgroup.
        let other = second.get(fact).map(String::as_str).unwrap_or_default();
        let leaf = fact.starts_with("cgroup.") && other.starts_with(value.as_str());
        assert!(
            leaf || other == value,
            "{name}: {fact} is {value:?} at first and {other:?} in an exec"
        );
        compared += 1;
    }
    assert!(compared > 100, "only {compared} facts");
}

/// T10 and T11: an exec is confined exactly as the container's first process, and neither inherits a capability.
#[tokio::test]
async fn an_exec_is_confined_as_the_first_process() {
    let daemon = daemon().await;
    let mut config = daemon.pod("drift");
    pod_security(&mut config).privileged = true;
    let pod = Pod::run_config(&daemon, config).await;
    for (name, change) in kinds() {
        let mut config = sh(name, "/bin/probe look; exec sleep 1000");
        config.envs = vec![cri::KeyValue {
            key: "GIVEN".into(),
            value: b"yes".to_vec(),
        }];
        change(&mut config);
        let id = pod.start(&config).await;
        // The last thing that the probe looks at.
        pod.wait_log(&daemon, name, "path./proc/kallsyms").await;
        let first = facts(&daemon.output("drift", name, "stdout").unwrap());
        let second = exec(&pod, &id).await;
        expect_same(name, &first, &second);
        for facts in [&first, &second] {
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(
                    facts[&format!("status.{set}")],
                    "0000000000000000",
                    "{name}: {set}"
                );
            }
        }
    }
    daemon.finish().await.unwrap();
}

/// T12, CVE-2022-0492: the cgroup tree is no lever on the host.
#[tokio::test]
async fn the_cgroup_tree_is_no_way_out() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "cgroups").await;
    let script = "for f in $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release -o -name cgroup.procs \
                  -o -name memory.max -o -name memory.limit_in_bytes -o -name devices.allow -o -name cgroup.kill); \
                  do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
                  mkdir /tmp/cg; for c in memory rdma devices; do mount -t cgroup -o $c none /tmp/cg 2>/dev/null \
                  && echo mounted; done; mount -t cgroup2 none /tmp/cg 2>/dev/null && echo mounted; echo end";
    run_sh(&daemon, &pod, script).await.says(&["end"]);
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T13: a container with the right to make device nodes cannot use one.
#[tokio::test]
async fn the_hosts_disks_and_memory_cannot_be_opened() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "disks").await;
    // Every block device of the host, by its real number, and the character devices that would do.
    let disks = std::fs::read_dir("/sys/class/block").unwrap().flatten();
    let numbers = disks.filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok());
    let mut script: String = numbers
        .take(20)
        .map(|number| {
            format!(
                "probe try node b {} /tmp/n; ",
                number.trim().replace(':', " ")
            )
        })
        .collect();
    for (major, minor) in [
        (1, 1),
        (1, 2),
        (1, 4),
        (10, 229),
        (10, 237),
        (10, 232),
        (4, 0),
    ] {
        script += &format!("probe try node c {major} {minor} /tmp/n; ");
    }
    let mut config = sh("c", &script);
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_RAWIO".into(), "SYS_ADMIN".into()],
        ..Default::default()
    });
    let out = run(&daemon, &pod, &config).await.ok();
    assert!(out.lines().count() >= 8);
    assert!(out.lines().all(|line| line == "node: EPERM"), "{out}");
    daemon.finish().await.unwrap();
}

/// T14, CVE-2020-15257: no socket of the runtime's can be reached from a pod in the node's network.
#[tokio::test]
async fn no_socket_can_be_reached_without_its_file() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "sockets").await;
    pod.start(&program("c", &["sleep", "1000"])).await;
    let own: BTreeSet<String> = procs::of_scratch(daemon.scratch())
        .iter()
        .filter(|process| process.role != procs::Role::Guest)
        .flat_map(|process| sockets_of(process.pid))
        .collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    for line in table.lines().filter(|line| line.contains(" @")) {
        let inode = line.split_whitespace().nth(6).unwrap();
        assert!(!own.contains(inode), "an abstract socket: {line}");
    }
    if !on_peer() {
        let run_dir = daemon.scratch().dir().join("run");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&run_dir), 0o700);
        assert_eq!(mode(&daemon.socket()), 0o660);
        let mut found = 0;
        walk(&run_dir, &mut |path| {
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            if is_socket && path != daemon.socket() {
                assert_eq!(mode(path), 0o600, "{}", path.display());
                assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
                found += 1;
            }
        });
        assert!(found > 0, "no control socket was looked at");
    }
    daemon.finish().await.unwrap();
}

fn sockets_of(pid: i32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let text = links.map(|link| link.display().to_string());
    text.filter_map(|link| {
        Some(
            link.strip_prefix("socket:[")?
                .trim_end_matches(']')
                .to_owned(),
        )
    })
    .collect()
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        visit(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

/// T15, CVE-2024-25621: a user of the node sees nothing of the runtime's directories and runs no image's set-id file.
#[tokio::test]
async fn a_user_of_the_node_cannot_look_into_images() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "walker").await;
    pod.start(&program("c", &["sleep", "1000"])).await;
    for part in ["root", "run"] {
        let top = daemon.scratch().dir().join(part);
        let walk = Command::new("find")
            .arg(&top)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let seen = String::from_utf8_lossy(&walk.stdout).into_owned();
        let below = seen
            .lines()
            .filter(|line| !on_peer() && Path::new(line) != top);
        assert_eq!(below.collect::<Vec<_>>(), Vec::<&str>::new());
    }
    let find = Command::new("find")
        .arg(daemon.scratch().dir().join("root"))
        .args(["-name", "set-uid-probe"])
        .output();
    let paths = String::from_utf8(find.unwrap().stdout).unwrap();
    assert!(!paths.is_empty());
    for path in paths.lines() {
        let tried = Command::new(path)
            .arg("look")
            .uid(65_534)
            .gid(65_534)
            .output();
        assert_eq!(
            tried.unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied,
            "{path}"
        );
    }
    daemon.finish().await.unwrap();
}

/// T17, CVE-2022-2989: groups of the daemon are not the container's.
#[tokio::test]
async fn the_daemons_groups_are_its_own() {
    let gid = |raw: u32| Gid::from_raw(raw);
    rustix::thread::set_thread_groups(&[gid(4242), gid(4243)]).unwrap();
    let daemon: Daemon = daemon().await;
    rustix::thread::set_thread_groups(&[]).unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(groups.contains("4242 4243"), "{groups}");
    let pod = Pod::run(&daemon, "groups").await;
    let image = hostile(&daemon, |layer| layer).await;
    for (user, added, output) in [
        (None, vec![], ""),
        (Some(0), vec![], ""),
        (Some(12), vec![], ""),
        (Some(12), vec![77, 78], "77 78"),
    ] {
        let mut config = program(
            &fresh("c"),
            &[
                "/bin/busybox",
                "sh",
                "-c",
                "busybox grep Groups: /proc/self/status",
            ],
        );
        config.image = Some(coracle_tests::client::image(&image));
        security(&mut config).run_as_user = user.map(|value| cri::Int64Value { value });
        security(&mut config).supplemental_groups = added;
        let out = run(&daemon, &pod, &config).await.ok();
        let listed: Vec<_> = out
            .trim_start_matches("Groups:")
            .split_whitespace()
            .collect();
        // The primary group may be listed again.
        let listed: Vec<_> = listed.into_iter().filter(|group| *group != "0").collect();
        assert_eq!(listed.join(" "), output, "user {user:?}");
    }
    daemon.finish().await.unwrap();
}
