//! The jail of a Wasm container from outside: what its process holds and may do.

use std::collections::BTreeSet;
use std::fs;

use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::{Process, Role};

use crate::site::{Pod, daemon, eventually, tool};

async fn sleeper(daemon: &Daemon, pod: &Pod, name: &str) -> Process {
    let before: BTreeSet<i32> = daemon
        .processes(Role::Guest)
        .iter()
        .map(|guest| guest.pid)
        .collect();
    pod.start(&container(name, tool(), &["sleep"])).await;
    pod.wait_log(daemon, name, "sleeping").await;
    let mut found = None;
    eventually("the guest's process shows", || {
        found = daemon
            .processes(Role::Guest)
            .into_iter()
            .find(|guest| !before.contains(&guest.pid));
        found.is_some()
    })
    .await;
    found.unwrap()
}

fn status_line(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in the status of {pid}"))
        .trim()
        .to_owned()
}

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

#[tokio::test]
async fn a_guest_is_nobody_and_may_do_nothing() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "jail").await;
    let guest = sleeper(&daemon, &pod, "c").await;
    let ids = |line: &str| -> Vec<u32> {
        line.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    };
    for name in ["Uid:", "Gid:"] {
        let ids = ids(&status_line(guest.pid, name));
        assert!(
            ids.iter().all(|id| *id >= 65_536 && *id == ids[0]),
            "{name} {ids:?} are not from a range of the pod's own"
        );
    }
    assert!(
        ids(&status_line(guest.pid, "Groups:"))
            .iter()
            .all(|id| *id >= 65_536)
    );
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status_line(guest.pid, name), "0000000000000000", "{name}");
    }
    assert_eq!(status_line(guest.pid, "NoNewPrivs:"), "1");
    assert_eq!(status_line(guest.pid, "Seccomp:"), "2");
    assert_eq!(
        fs::read(format!("/proc/{}/environ", guest.pid)).unwrap_or_default(),
        b""
    );
    for kind in ["mnt", "pid", "ipc", "uts", "net"] {
        assert_ne!(
            namespace(&guest.pid.to_string(), kind),
            namespace("self", kind),
            "{kind}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_holds_no_descriptor_that_is_not_its_own() {
    let daemon = daemon().await;
    let other = Pod::run(&daemon, "other").await;
    sleeper(&daemon, &other, "before").await;
    let pod = Pod::run(&daemon, "fds").await;
    let guest = sleeper(&daemon, &pod, "c").await;
    let fds: Vec<_> = fs::read_dir(format!("/proc/{}/fd", guest.pid))
        .unwrap()
        .flatten()
        .collect();
    let targets: Vec<String> = fds
        .iter()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .map(|to| to.display().to_string())
        .collect();
    for target in &targets {
        let foreign = [".log", "/pods/", ".sock", "other", "cgroup", "netns"];
        assert!(
            !foreign.iter().any(|expected| target.contains(expected)),
            "a guest holds {target} among {targets:?}"
        );
    }
    // A runtime inside the guest may have made a pair for its own signals; more would be somebody else's.
    let sockets: BTreeSet<_> = targets
        .iter()
        .filter(|target| target.starts_with("socket:"))
        .collect();
    assert!(sockets.len() <= 2 && targets.len() <= 16, "{targets:?}");
    daemon.finish().await.unwrap();
}

/// The tests' daemons are started with their configuration open as descriptor 9.
#[tokio::test]
async fn what_the_daemon_was_started_with_open_goes_to_no_process() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fds").await;
    sleeper(&daemon, &pod, "c").await;
    let config = daemon.config_path();
    let has_it = |pid: i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target == config)
    };
    // It executes itself once when it starts, which closes it.
    assert!(!has_it(daemon.pid()), "the daemon");
    for role in [Role::Spawner, Role::Keeper, Role::Guest] {
        let found = daemon.processes(role);
        assert!(!found.is_empty(), "{role:?}");
        for process in found {
            assert!(!has_it(process.pid), "{process:?}");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_sees_a_root_of_the_image_alone() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "root").await;
    let guest = sleeper(&daemon, &pod, "c").await;
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", guest.pid)).unwrap();
    let points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    for point in &points {
        let expected = *point == "/" || point.starts_with("/etc/");
        assert!(
            expected,
            "a guest without volumes has a mount at {point}; all: {points:?}"
        );
    }
    for line in mounts.lines() {
        let options = line.split(' ').nth(5).unwrap();
        for want in ["nosuid", "nodev", "noexec"] {
            assert!(
                options.split(',').any(|option| option == want),
                "no {want}: {line}"
            );
        }
    }
    let entries = fs::read_dir(format!("/proc/{}/root", guest.pid))
        .unwrap()
        .flatten();
    let names: BTreeSet<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from(["etc".to_owned(), "tool.wasm".to_owned()])
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pods_containers_share_its_network_and_nothing_with_other_pods() {
    let daemon = daemon().await;
    let (one, two) = (
        Pod::run(&daemon, "one").await,
        Pod::run(&daemon, "two").await,
    );
    let (a, b) = (
        sleeper(&daemon, &one, "a").await,
        sleeper(&daemon, &one, "b").await,
    );
    let c = sleeper(&daemon, &two, "c").await;
    let of = |process: &Process, kind: &str| namespace(&process.pid.to_string(), kind);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(of(&a, kind), of(&b, kind), "{kind}");
        assert_ne!(of(&a, kind), of(&c, kind), "{kind}");
    }
    for kind in ["mnt", "pid"] {
        assert_eq!(
            BTreeSet::from([of(&a, kind), of(&b, kind), of(&c, kind)]).len(),
            3,
            "{kind}"
        );
    }
    let uid = |process: &Process| {
        status_line(process.pid, "Uid:")
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(uid(&a), uid(&b));
    assert_ne!(uid(&a), uid(&c), "two pods share a host uid");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn one_container_never_sees_anothers_environment() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "secrets").await;
    let mut with_secret = container("secret", tool(), &["sleep"]);
    let canary = "canary-5b1f0c7e94";
    with_secret.envs = vec![coracle_proto::runtime::v1::KeyValue {
        key: "TOKEN".into(),
        value: canary.into(),
    }];
    pod.start(&with_secret).await;
    pod.wait_log(&daemon, "secret", "sleeping").await;
    let guest = sleeper(&daemon, &pod, "curious").await;
    assert!(
        !memory_holds(guest.pid, canary),
        "a sibling's environment lies in the memory of {guest:?}"
    );
    let keeper = daemon.processes(Role::Keeper).pop().unwrap();
    assert!(
        !memory_holds(keeper.pid, canary),
        "the environment lies in the keeper's memory, which guests inherit"
    );
    let spawner = daemon.processes(Role::Spawner).pop().unwrap();
    assert!(
        !memory_holds(spawner.pid, canary),
        "the environment lies in the spawner's memory"
    );
    assert!(
        !daemon.log().contains(canary),
        "the environment is in the daemon's log"
    );
    daemon.finish().await.unwrap();
}

/// Whether any readable private memory of a process holds this text.
fn memory_holds(pid: i32, text: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let ranges = maps
        .lines()
        .filter(|line| line.contains(" rw"))
        .filter_map(|line| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            Some((
                u64::from_str_radix(from, 16).ok()?,
                u64::from_str_radix(to, 16).ok()?,
            ))
        });
    let mut chunk = vec![0; 1 << 20];
    for (from, to) in ranges {
        let mut at = from;
        while at < to {
            let size = (to - at).min(chunk.len() as u64) as usize;
            if memory.read_exact_at(&mut chunk[..size], at).is_err() {
                break;
            }
            if chunk[..size]
                .windows(text.len())
                .any(|window| window == text.as_bytes())
            {
                return true;
            }
            at += size as u64;
        }
    }
    false
}
