//! Changing limits while processes run: order, refusal, undoing.

use super::*;

#[test]
fn memory_and_swap_go_up_and_down() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &Limits::default());
    for (bytes, with_swap) in [
        (64, 64),
        (256, 300),
        (32, 40),
        (500, 500),
        (-1, -1),
        (16, 16),
    ] {
        let unit = |size: i64| if size < 0 { size } else { size << 20 };
        cgroup
            .set(&memory(unit(bytes), Some(unit(with_swap))))
            .unwrap();
        let limit = cgroup.stats().unwrap().memory_limit_bytes;
        assert_eq!(limit, u64::try_from(bytes).ok().map(|size| size << 20));
    }
}

#[test]
fn cpu_quota_and_period_stay_below_the_parents_share() {
    let parent = Parent::new();
    let cpu = |quota, period| Limits {
        cpu_quota: Some(quota),
        cpu_period: Some(period),
        ..Limits::default()
    };
    let pod = parent.create("pod", &Limits::default());
    let cgroup = parent.create("pod/container", &Limits::default());
    pod.set(&cpu(50_000, 100_000)).unwrap();
    for (quota, period) in [
        (50_000, 100_000),
        (5_000, 10_000),
        (500_000, 1_000_000),
        (1_000, 100_000),
    ] {
        cgroup.set(&cpu(quota, period)).unwrap();
        if parent.cgroups.version() == Version::V1 {
            let now = (
                v1_file(&cgroup, "cpu", "cpu.cfs_quota_us"),
                v1_file(&cgroup, "cpu", "cpu.cfs_period_us"),
            );
            assert_eq!(now, (quota.to_string(), period.to_string()));
            let error = cgroup.set(&cpu(90_000, 100_000)).unwrap_err();
            assert!(error.is_invalid(), "{error}");
            assert_eq!(
                v1_file(&cgroup, "cpu", "cpu.cfs_quota_us"),
                quota.to_string()
            );
            assert_eq!(
                v1_file(&cgroup, "cpu", "cpu.cfs_period_us"),
                period.to_string()
            );
        }
    }
}

#[test]
fn a_refused_limit_takes_the_earlier_ones_back() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &modest());
    let refused = Limits {
        cpu_shares: Some(1024),
        cpu_quota: Some(-1),
        cpu_period: Some(100_000),
        memory_bytes: Some(256 << 20),
        memory_swap_bytes: Some(512 << 20),
        pids: Some(-1),
        cpuset_cpus: Some("4000".into()),
        ..Limits::default()
    };
    let error = cgroup.set(&refused).unwrap_err();
    assert!(
        error.is_invalid() && error.to_string().contains("cpuset.cpus"),
        "{error}"
    );
    assert_eq!(cgroup.stats().unwrap().memory_limit_bytes, Some(64 << 20));
    assert_eq!(cgroup.stats().unwrap().pids_limit, Some(17));
    if parent.cgroups.version() == Version::V1 {
        for (controller, file, value) in [
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "50000"),
            ("memory", "memory.memsw.limit_in_bytes", "67108864"),
        ] {
            assert_eq!(v1_file(&cgroup, controller, file), value, "{file}");
        }
    }
}

#[test]
fn a_container_has_a_cpuset_once_it_is_to_have_processors_of_its_own() {
    let parent = Parent::new();
    let cgroup = parent.create("pod/container", &Limits::default());
    let Layout::V1(v1) = cgroup.layout() else {
        return;
    };
    let own = v1.dir("cpuset", cgroup.path()).unwrap();
    assert!(!own.exists() && !own.parent().unwrap().exists());
    let mut shell = run_in(&cgroup, "sleep 1000 & sleep 1000");
    wait_for("the workload", || cgroup.pids().unwrap().len() == 3);
    let first = Limits {
        cpuset_cpus: Some("0".into()),
        ..Limits::default()
    };
    cgroup.set(&first).unwrap();
    assert_eq!(v1_file(&cgroup, "cpuset", "cpuset.cpus"), "0");
    for pid in cgroup.pids().unwrap() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
    // What joins later is in it, too.
    let mut second = run_in(&cgroup, "sleep 1000");
    wait_for("another", || {
        let listed = v1_file(&cgroup, "cpuset", "cgroup.procs");
        let pid = i32::try_from(second.id()).unwrap();
        listed.lines().any(|listed| listed == pid.to_string())
            && cgroup.pids().unwrap().contains(&pid)
    });
    // What was about to join its parent's meanwhile is moved by the next change.
    let late = own.parent().unwrap().join("cgroup.procs");
    std::fs::write(&late, second.id().to_string()).unwrap();
    cgroup.set(&first).unwrap();
    let listed = v1_file(&cgroup, "cpuset", "cgroup.procs");
    assert!(listed.lines().any(|pid| pid == second.id().to_string()));
    killed(&cgroup);
    for shell in [&mut shell, &mut second] {
        shell.wait().unwrap();
    }
    removed(&cgroup);
    assert!(!own.exists());
}

#[test]
fn memory_below_usage_changes_nothing_and_cache_does_not_count() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &memory(256 << 20, Some(256 << 20)));
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    let script = format!(
        "head -c 40000000 /dev/zero > {0}; cat {0} > /dev/null; sync {0}; sleep 1000",
        file.display()
    );
    let mut shell = run_in(&cgroup, &script);
    wait_for("the cache", || {
        let stats = cgroup.stats().unwrap();
        stats.cache_bytes > 30_000_000 && stats.memory_usage_bytes < stats.cache_bytes + 20_000_000
    });
    // What was written must be clean to be reclaimed.
    wait_for("room", || {
        cgroup.set(&memory(24 << 20, Some(24 << 20))).is_ok()
    });
    assert!(cgroup.stats().unwrap().memory_usage_bytes <= 24 << 20);
    assert_eq!(shell.try_wait().unwrap(), None, "nobody was killed");
    killed(&cgroup);
    shell.wait().unwrap();

    let mut shell = run_in(
        &cgroup,
        "x=$(head -c 10000000 /dev/zero | tr '\\0' x); sleep 1000",
    );
    wait_for("the memory", || {
        cgroup.stats().unwrap().rss_bytes > 9_000_000
    });
    let error = cgroup.set(&memory(4 << 20, Some(4 << 20))).unwrap_err();
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
    assert!(error.is_invalid());
    assert_eq!(cgroup.stats().unwrap().memory_limit_bytes, Some(24 << 20));
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    killed(&cgroup);
    shell.wait().unwrap();
}

#[test]
fn huge_pages_are_limited_where_they_are_accounted() {
    let parent = Parent::new();
    let limits = |size: &str, bytes| Limits {
        hugepages: [(size.to_owned(), bytes)].into(),
        ..Limits::default()
    };
    let cgroup = parent.create("kubepods/pod/container", &limits("2MB", 4 << 20));
    let listed = cgroup.hugepages().unwrap();
    let Some(two) = listed.iter().find(|pages| pages.page_size == "2MB") else {
        println!("this node does not account huge pages");
        return;
    };
    assert_eq!(two.usage_bytes, 0);
    let file = match cgroup.layout() {
        Layout::V1(v1) if v1.dir("hugetlb", cgroup.path()).is_some() => return,
        _ => cgroup.unified_dir().unwrap().join("hugetlb.2MB.max"),
    };
    assert_eq!(files::read_number(&file).unwrap(), Some(4 << 20));
    assert_eq!(
        files::read_number(&file.with_file_name("hugetlb.2MB.rsvd.max")).unwrap(),
        Some(4 << 20)
    );
    cgroup.set(&limits("2MB", 0)).unwrap();
    assert_eq!(files::read_number(&file).unwrap(), Some(0));
    for size in ["3MB", "../2MB"] {
        let error = cgroup.set(&limits(size, 0)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}
