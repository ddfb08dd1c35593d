//! Containers whose processes are in an inner cgroup.

use super::*;

fn contained(parent: &Parent, limits: &Limits) -> Cgroup {
    let path = format!("{}/container", parent.path);
    let made = parent
        .cgroups
        .create_container(&path, limits, Exposure::Inner);
    made.unwrap()
}

/// The value of a file that both versions have under other names.
fn value(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    match cgroup.layout() {
        Layout::V1(_) => v1_file(cgroup, controller, v1),
        Layout::V2(tree) => {
            let text = files::read(&tree.dir(cgroup.path()).join(v2)).unwrap();
            text.trim().to_owned()
        }
    }
}

fn memory_of(cgroup: &Cgroup) -> String {
    value(cgroup, "memory", "memory.limit_in_bytes", "memory.max")
}

#[test]
fn processes_are_in_the_inner_cgroup_and_count_for_the_outer() {
    let parent = Parent::new();
    let limits = Limits {
        devices: Some(DeviceRule::defaults()),
        cpuset_cpus: Some("0".into()),
        ..modest()
    };
    let outer = contained(&parent, &limits);
    let inner = outer.inner();
    for file in ["memory", "pids", "cpu"] {
        let (v1, v2) = match file {
            "memory" => ("memory.limit_in_bytes", "memory.max"),
            "pids" => ("pids.max", "pids.max"),
            _ => ("cpu.cfs_quota_us", "cpu.max"),
        };
        assert_eq!(
            value(&outer, file, v1, v2),
            value(&inner, file, v1, v2),
            "{file}"
        );
    }
    assert_eq!(value(&inner, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    let mut init = run_in(&inner, "sleep 1000 & exec sleep 1000");
    wait_for("both", || inner.pids().unwrap().len() == 2);
    let leaf = inner.exec_leaf("a").unwrap();
    assert_eq!(leaf.path(), format!("{}/payload/exec-a", outer.path()));
    assert_eq!(outer.pids().unwrap(), inner.pids().unwrap());
    assert_eq!(outer.stats().unwrap().pids, 2);
    // No task of it is in a cgroup that bounds it, nor in one above.
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", init.id())).unwrap();
    for controller in ["cpu", "cpuacct", "cpuset", "memory", "pids"] {
        let named = |line: &&str| {
            line.split(':')
                .nth(1)
                .unwrap()
                .split(',')
                .any(|name| name == controller)
        };
        let line = text
            .lines()
            .find(named)
            .or(text.lines().find(|line| line.starts_with("0::")));
        assert!(line.unwrap().ends_with("/payload"), "{text}");
    }
    killed(&outer);
    init.wait().unwrap();
    removed(&outer);
    assert!(!inner.exists());
}

#[test]
fn changes_reach_both_and_those_below_do_not_stop_them() {
    let parent = Parent::new();
    let outer = contained(
        &parent,
        &Limits {
            cpuset_cpus: Some("0-1".into()),
            ..modest()
        },
    );
    let inner = outer.inner();
    let quota = |quota, cpus: &str| Limits {
        cpu_quota: Some(quota),
        cpu_period: Some(100_000),
        cpuset_cpus: Some(cpus.into()),
        ..memory(32 << 20, Some(32 << 20))
    };
    if let Layout::V1(v1) = outer.layout() {
        let nested = v1.dir("cpu", inner.path()).unwrap().join("n");
        std::fs::create_dir(&nested).unwrap();
        files::write(&nested.join("cpu.cfs_quota_us"), "30000").unwrap();
        let nested = v1.dir("cpuset", inner.path()).unwrap().join("n");
        std::fs::create_dir(&nested).unwrap();
        files::write(&nested.join("cpuset.cpus"), "0-1").unwrap();
        outer.set(&quota(10_000, "0")).unwrap_err();
        assert_eq!(
            v1_file(&outer, "cpu", "cpu.cfs_quota_us"),
            "20000",
            "rolled back"
        );
    }
    for (quota, cpus) in [
        (quota(10_000, "0"), "0"),
        (quota(5_000, "1"), "1"),
        (quota(80_000, "0-1"), "0-1"),
    ] {
        outer.set_with_inner(&quota).unwrap();
        for cgroup in [&outer, &inner] {
            assert_eq!(value(cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus"), cpus);
            let wanted = quota.cpu_quota.unwrap().to_string();
            assert!(value(cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max").starts_with(&wanted));
            assert_eq!(memory_of(cgroup), "33554432");
        }
    }
    // What the workload made of its copy does not bound what follows.
    if parent.cgroups.version() == Version::V1 {
        let wide = Limits {
            cpu_quota: Some(-1),
            ..memory(-1, Some(-1))
        };
        inner.set(&wide).unwrap();
        assert_eq!(memory_of(&outer), "33554432");
        outer
            .set_with_inner(&memory(16 << 20, Some(16 << 20)))
            .unwrap();
        assert_eq!(
            (memory_of(&outer), memory_of(&inner)),
            ("16777216".into(), "16777216".into())
        );
    }
}

#[test]
fn a_refused_change_leaves_both_as_they_were() {
    let parent = Parent::new();
    let outer = contained(&parent, &modest());
    let before = memory_of(&outer);
    let refused = Limits {
        cpuset_cpus: Some("4000".into()),
        ..memory(32 << 20, Some(32 << 20))
    };
    outer.set_with_inner(&refused).unwrap_err();
    assert_eq!(
        (memory_of(&outer), memory_of(&outer.inner())),
        (before.clone(), before)
    );
}

#[test]
fn a_death_in_the_inner_cgroup_and_what_it_was_refused_are_known_outside() {
    let parent = Parent::new();
    let outer = contained(&parent, &memory(32 << 20, None));
    let status = run_in(&outer.inner(), "tail /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert_eq!(outer.oom_kills().unwrap(), 1);
    assert!(outer.stats().unwrap().memory_limit_hits.unwrap() > 0);
    let quota = Limits {
        cpu_quota: Some(5_000),
        cpu_period: Some(50_000),
        ..Limits::default()
    };
    outer.set_with_inner(&quota).unwrap();
    let mut busy = run_in(&outer.inner(), "while :; do :; done");
    wait_for("throttling", || {
        let throttling = outer.stats().unwrap().throttling;
        throttling.is_some_and(|found| found.throttled_periods > 2 && found.throttled_ns > 0)
    });
    killed(&outer);
    busy.wait().unwrap();
}

#[test]
fn creating_it_repeats_and_a_refused_one_leaves_nothing() {
    let parent = Parent::new();
    let outer = contained(&parent, &modest());
    contained(&parent, &modest());
    assert!(outer.inner().exists());
    let path = format!("{}/refused", parent.path);
    let limits = Limits {
        cpuset_cpus: Some("4000".into()),
        ..Limits::default()
    };
    let cgroups = &parent.cgroups;
    cgroups
        .create_container(&path, &limits, Exposure::Inner)
        .unwrap_err();
    assert!(!cgroups.open(&path).unwrap().exists());
}

#[test]
fn what_is_seen_has_a_cpuset_of_its_own() {
    let parent = Parent::new();
    let Layout::V1(v1) = &*parent.cgroups.layout else {
        return;
    };
    for (name, exposure, has_own) in [
        ("hidden", Exposure::Hidden, false),
        ("privileged", Exposure::Privileged, true),
        ("guarded", Exposure::Guarded, true),
    ] {
        let path = format!("{}/{name}", parent.path);
        let made = parent
            .cgroups
            .create_container(&path, &Limits::default(), exposure);
        let own = v1.dir("cpuset", &path).unwrap();
        assert_eq!(own.is_dir(), has_own, "{name}");
        let file = own.join("tasks");
        assert_eq!(
            made.unwrap().task_files().contains(&file),
            has_own,
            "{name}"
        );
        if has_own {
            let all = files::read(Path::new("/sys/fs/cgroup/cpuset/cpuset.cpus")).unwrap();
            assert_eq!(files::read(&own.join("cpuset.cpus")).unwrap(), all);
        }
    }
}

#[test]
fn cost_of_each_exposure() {
    let parent = Parent::new();
    for exposure in [Exposure::Hidden, Exposure::Guarded, Exposure::Inner] {
        let limits = Limits {
            devices: Some(DeviceRule::defaults()),
            ..modest()
        };
        let (mut made, mut removed) = (Duration::ZERO, Duration::ZERO);
        for number in 0..40 {
            let path = format!("{}/{number}", parent.path);
            let begun = Instant::now();
            let cgroup = parent
                .cgroups
                .create_container(&path, &limits, exposure)
                .unwrap();
            made += begun.elapsed();
            let begun = Instant::now();
            super::removed(&cgroup);
            removed += begun.elapsed();
        }
        println!(
            "{exposure:?}: create {:?}, remove {:?}",
            made / 40,
            removed / 40
        );
    }
}
