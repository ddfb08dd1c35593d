//! Tests of `cgroup` on the real cgroups of this machine, below a parent of the test's own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stdout,
    reason = "measurements are for whoever reads the test output"
)]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

mod devices;
mod inner;
mod killing;
mod leaves;
mod limits;
mod nested;
mod usage;

/// A parent that is removed, and checked to be gone, when the test ends.
struct Parent {
    cgroups: Cgroups,
    path: String,
}

impl Parent {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            cgroups: Cgroups::detect().unwrap(),
            path: format!("/coracle-test-{}-{number}", std::process::id()),
        }
    }

    fn create(&self, name: &str, limits: &Limits) -> Cgroup {
        self.cgroups
            .create(&format!("{}/{name}", self.path), limits)
            .unwrap()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let cgroup = self.cgroups.open(&self.path).unwrap();
        if std::thread::panicking() {
            let _ = cgroup.kill().and_then(|()| cgroup.remove());
            return;
        }
        killed(&cgroup);
        removed(&cgroup);
    }
}

/// A shell that joins `cgroup`, then runs `script`.
fn run_in(cgroup: &Cgroup, script: &str) -> Child {
    let join = r#"for file; do echo 0 > "$file" || exit 99; done; "#;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", &format!("{join}{script}"), "sh"])
        .args(cgroup.procs_files());
    shell
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited 60 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills what is in `cgroup`. On a machine that is busy with other things it may not have died within the time of one call.
fn killed(cgroup: &Cgroup) {
    wait_for("the end of all processes", || match cgroup.kill() {
        Ok(()) => true,
        Err(Error::StillAlive { .. }) => false,
        Err(error) => panic!("{error}"),
    });
}

/// Removes `cgroup`, for which one call may be too short a time.
fn removed(cgroup: &Cgroup) {
    wait_for("removal", || cgroup.remove().is_ok());
    assert!(!cgroup.exists(), "{} is left over", cgroup.path());
}

/// How long `act` takes when nothing else has the processor: the least of many times.
fn least(times: usize, mut act: impl FnMut()) -> Duration {
    let took = (0..times).map(|_| {
        let started = Instant::now();
        act();
        started.elapsed()
    });
    took.min().unwrap()
}

fn v1_file(cgroup: &Cgroup, controller: &str, file: &str) -> String {
    let Layout::V1(v1) = cgroup.layout() else {
        return String::new();
    };
    files::read(&v1.dir(controller, cgroup.path()).unwrap().join(file))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn node_is_fit() {
    let cgroups = Cgroups::detect().unwrap();
    assert_eq!(cgroups.missing(), Vec::<&str>::new());
}

#[test]
fn bad_paths_are_refused() {
    let cgroups = Cgroups::detect().unwrap();
    for path in [
        "",
        "/",
        "a/b",
        "/a/../b",
        "/..",
        "/a/./b",
        "/a//b",
        "/a/",
        "/a\0b",
        &format!("/{}", "x".repeat(3000)),
    ] {
        assert!(
            matches!(cgroups.open(path), Err(Error::BadPath { .. })),
            "{path:?}"
        );
        assert!(
            matches!(
                cgroups.create(path, &Limits::default()),
                Err(Error::BadPath { .. })
            ),
            "{path:?}"
        );
    }
    assert_eq!(
        cgroups.open("/kubepods/podx..y/a").unwrap().path(),
        "/kubepods/podx..y/a"
    );
}

/// Memory, and memory with swap. Bytes.
fn memory(bytes: i64, with_swap: Option<i64>) -> Limits {
    Limits {
        memory_bytes: Some(bytes),
        memory_swap_bytes: with_swap,
        ..Limits::default()
    }
}

/// Half the usual shares, 0.4 of a CPU, 64 MiB without swap, 17 processes.
fn modest() -> Limits {
    Limits {
        cpu_shares: Some(512),
        cpu_quota: Some(20_000),
        cpu_period: Some(50_000),
        pids: Some(17),
        ..memory(64 << 20, Some(64 << 20))
    }
}

#[test]
fn limits_are_written_and_changed() {
    let parent = Parent::new();
    let limits = Limits {
        cpuset_cpus: Some("0".into()),
        ..modest()
    };
    let cgroup = parent.create("burstable/pod/container", &limits);
    if parent.cgroups.version() == Version::V1 {
        for (controller, file, value) in [
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "50000"),
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("pids", "pids.max", "17"),
            ("cpuset", "cpuset.cpus", "0"),
        ] {
            assert_eq!(v1_file(&cgroup, controller, file), value, "{file}");
        }
        assert_ne!(
            v1_file(&cgroup, "cpuset", "cpuset.mems"),
            "",
            "memory nodes come from the parent"
        );
    }
    let raised = Limits {
        memory_bytes: Some(128 << 20),
        memory_swap_bytes: Some(128 << 20),
        pids: Some(-1),
        cpu_quota: Some(-1),
        ..Limits::default()
    };
    cgroup.set(&raised).unwrap();
    if parent.cgroups.version() == Version::V1 {
        assert_eq!(
            v1_file(&cgroup, "memory", "memory.limit_in_bytes"),
            "134217728"
        );
        assert_eq!(v1_file(&cgroup, "pids", "pids.max"), "max");
        assert_eq!(
            v1_file(&cgroup, "cpu", "cpu.shares"),
            "512",
            "what is not given stays"
        );
    }
}

#[test]
fn refused_limit_leaves_nothing() {
    let parent = Parent::new();
    let path = format!("{}/pod", parent.path);
    let limits = Limits {
        cpuset_cpus: Some("4000".into()),
        ..Limits::default()
    };
    let error = parent.cgroups.create(&path, &limits).unwrap_err();
    assert!(error.to_string().contains("cpuset.cpus"), "{error}");
    assert!(!parent.cgroups.open(&path).unwrap().exists());
}

#[test]
fn create_kill_and_remove_repeat() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &Limits::default());
    parent.create(
        "pod",
        &Limits {
            pids: Some(3),
            ..Limits::default()
        },
    );
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(cgroup.oom_kills().is_err());
    assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
}

#[test]
fn oom_kills_below_are_counted() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &memory(16 << 20, Some(16 << 20)));
    let path = format!("{}/below", cgroup.path());
    let Layout::V1(v1) = cgroup.layout() else {
        // There a v2 cgroup with a process in it may hand no controller down.
        return;
    };
    let below = v1.dir("memory", &path).unwrap();
    std::fs::create_dir(&below).unwrap();
    let move_down = format!(
        "echo 0 > {}/cgroup.procs; exec tail /dev/zero",
        below.display()
    );
    assert!(!run_in(&cgroup, &move_down).wait().unwrap().success());
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
}

#[test]
fn oom_kill_is_counted() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &memory(16 << 20, Some(16 << 20)));
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    let status = run_in(&cgroup, "exec tail /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
}

#[test]
fn memory_limit_below_usage_is_refused() {
    let parent = Parent::new();
    let cgroup = parent.create(
        "pod",
        &Limits {
            memory_bytes: Some(256 << 20),
            ..Limits::default()
        },
    );
    let mut shell = run_in(
        &cgroup,
        "x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 1000",
    );
    wait_for("the memory", || {
        cgroup.stats().unwrap().memory_usage_bytes > 25_000_000
    });
    let error = cgroup
        .set(&Limits {
            memory_bytes: Some(4 << 20),
            ..Limits::default()
        })
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::BelowUsage {
                limit: 4_194_304,
                ..
            }
        ),
        "{error}"
    );
    killed(&cgroup);
    shell.wait().unwrap();
}

#[test]
fn a_container_costs_little() {
    let parent = Parent::new();
    parent.create("warm", &Limits::default());
    let limits = Limits {
        cpu_shares: Some(2),
        memory_bytes: Some(64 << 20),
        pids: Some(100),
        ..Limits::default()
    };
    let mut all = Vec::new();
    let create = least(50, || {
        all.push(parent.create(&format!("pod{}", all.len()), &limits));
    });
    let mut all = all.into_iter();
    let remove = least(50, || removed(&all.next().unwrap()));
    println!("create: {create:?}; remove: {remove:?}");
    // A hundred times the budget: what waits for the disk, a timer or all processors takes longer.
    assert!(create < Duration::from_millis(40), "{create:?}");
}
