//! Stats of real cgroups.

use super::*;

#[test]
fn a_parent_counts_what_its_containers_use() {
    let parent = Parent::new();
    let quota = Limits {
        cpu_quota: Some(40_000),
        cpu_period: Some(100_000),
        pids: Some(50),
        memory_bytes: Some(512 << 20),
        ..Limits::default()
    };
    let container = parent.create("pod/container", &quota);
    let pod = parent
        .cgroups
        .open(&format!("{}/pod", parent.path))
        .unwrap();
    let script = "x=$(head -c 5000000 /dev/zero | tr '\\0' x); while :; do :; done";
    let mut shell = run_in(&container, script);
    // The kernel counts some of these in ticks of 10 ms, some in batches, and pressure every two seconds.
    wait_for("work", || {
        let (stats, pod) = (container.stats().unwrap(), pod.stats().unwrap());
        let throttling = stats.throttling.unwrap();
        throttling.throttled_ns > 0
            && throttling.throttled_periods > 0
            && stats.cpu_user_ns.unwrap() + stats.cpu_system_ns.unwrap() > 0
            && stats.pids == 1
            && stats.rss_bytes > 5_000_000
            && pod.rss_bytes > 5_000_000
            && pod.cpu_usage_ns > 1_000_000
    });
    if Path::new("/proc/pressure/cpu").exists() && container.unified_dir().is_some() {
        wait_for("pressure: a throttled task waits for a CPU", || {
            [&container, &pod].iter().all(|cgroup| {
                let pressure = cgroup.stats().unwrap().cpu_pressure;
                pressure.is_some_and(|pressure| pressure.some.total_ns > 0)
            })
        });
        let stats = container.stats().unwrap();
        assert!(stats.io_pressure.is_some() && stats.memory_pressure.is_some());
    }
    // Read in this order: what a parent counts has grown since.
    let (stats, pod) = (container.stats().unwrap(), pod.stats().unwrap());
    assert!(pod.cpu_usage_ns >= stats.cpu_usage_ns && stats.cpu_usage_ns > 1_000_000);
    let throttling = stats.throttling.unwrap();
    assert!(throttling.periods >= throttling.throttled_periods);
    assert_eq!(
        (pod.memory_limit_bytes, pod.available_bytes()),
        (None, None)
    );
    assert_eq!(stats.memory_limit_bytes, Some(512 << 20));
    let left = (512 << 20) - stats.working_set_bytes();
    assert_eq!(stats.available_bytes(), Some(left));
    assert!(stats.working_set_bytes() > 5_000_000 && stats.page_faults > 1000);
    assert!(stats.memory_max_usage_bytes.unwrap() >= stats.rss_bytes);
    assert_eq!((stats.pids_limit, pod.pids), (Some(50), 1));
    killed(&container);
    shell.wait().unwrap();
}

#[test]
fn stats_of_what_is_gone_are_an_error() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &Limits::default());
    cgroup.stats().unwrap();
    cgroup.remove().unwrap();
    let error = cgroup.stats().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
}

#[test]
fn stats_cost_little() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &Limits::default());
    let mut shell = run_in(&cgroup, "sleep 1000");
    wait_for("the shell", || !cgroup.pids().unwrap().is_empty());
    let took = least(200, || {
        cgroup.stats().unwrap();
    });
    println!("stats: {took:?}");
    // A hundred times what it takes.
    assert!(took < Duration::from_millis(20), "{took:?}");
    killed(&cgroup);
    shell.wait().unwrap();
}
