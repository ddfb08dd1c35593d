//! What the daemon counts of its own work.

use super::*;

#[tokio::test]
async fn the_daemon_counts_what_it_recovers_compiles_and_executes() {
    let mut daemon = listening().await;
    let pod = Pod::run(&daemon, "counted").await;
    let id = pod.tool(&["sleep"]).await;
    pod.start(&container("again", tool(), &["sleep"])).await;
    let mut runtime = pod.cri.runtime.clone();
    let request = cri::StatusRequest { verbose: false };
    runtime.status(request).await.unwrap();
    let events = runtime
        .get_container_events(cri::GetEventsRequest {})
        .await
        .unwrap();
    let idle = container("idle", tool(), &["sleep"]);
    let idle = pod.create(&idle).await.unwrap();
    for (id, cmd, timeout) in [
        (&id, vec!["/tool", "show"], 0),
        (&id, vec!["/tool", "exit", "3"], 0),
        (&id, vec!["/tool", "sleep"], 1),
        // It does not run.
        (&idle, vec!["/tool", "show"], 0),
    ] {
        let request = cri::ExecSyncRequest {
            container_id: id.clone(),
            cmd: cmd.into_iter().map(str::to_owned).collect(),
            timeout,
        };
        let _ = runtime.exec_sync(request).await;
    }
    let text = scrape(&daemon, "/metrics");
    for result in ["ok", "nonzero", "timeout", "failed"] {
        let label = format!("result=\"{result}\"");
        let name = "coracle_exec_sync_duration_seconds_count";
        assert_eq!(value(&text, name, &[&label]), 1.0, "{result}");
    }
    let none = |name: &str| value(&text, name, &[]);
    assert_eq!(none("coracle_network_ready"), 1.0);
    assert_eq!(none("coracle_event_subscribers"), 1.0);
    assert_eq!(none("coracle_events_dropped_total"), 0.0);
    assert_eq!(none("coracle_spawner_restarts_total"), 0.0);
    assert_eq!(none("coracle_quarantined_records"), 0.0);
    let compiled = value(&text, "coracle_store_bytes", &["part=\"compiled\""]);
    assert!(compiled > 1000.0, "{compiled}");
    let compiled = |text: &str, result: &str| {
        let result = format!("result=\"{result}\"");
        value(text, "coracle_compilations_total", &[&result])
    };
    assert_eq!(
        (compiled(&text, "ok"), compiled(&text, "invalid")),
        (1.0, 0.0)
    );
    let requests = |result: &str| {
        let result = format!("result=\"{result}\"");
        value(&text, "coracle_compile_cache_requests_total", &[&result])
    };
    assert!(requests("hit") >= 2.0 && requests("miss") == 1.0);
    drop(events);
    for spawner in daemon.processes(Role::Spawner) {
        let pid = Pid::from_raw(spawner.pid).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
    Pod::run(&daemon, "second").await;
    let text = scrape(&daemon, "/metrics");
    assert_eq!(value(&text, "coracle_spawner_restarts_total", &[]), 1.0);
    let gone = || {
        value(
            &scrape(&daemon, "/metrics"),
            "coracle_event_subscribers",
            &[],
        ) == 0.0
    };
    eventually("the client is gone", gone).await;
    daemon.restart().await.unwrap();
    let text = scrape(&daemon, "/metrics");
    let recovered = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        value(&text, "coracle_recovered_sandboxes", &[&outcome])
    };
    assert_eq!((recovered("adopted"), recovered("dead")), (2.0, 0.0));
    assert_eq!(recovered("unrecovered"), 0.0);
    let took = value(&text, "coracle_recovery_duration_seconds", &[]);
    assert!(took > 0.0 && took < 30.0, "{took}");
    value(&text, "coracle_swept_total", &[]);
    daemon.finish().await.unwrap();
}
