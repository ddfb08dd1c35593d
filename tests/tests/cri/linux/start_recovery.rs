//! A daemon that dies while containers start: the next one reports them as starting until their programs run.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use std::time::{Duration, Instant};

use super::shell::{images, on_peer, pod_security, program, security, sh};
use super::users::in_userns;
use crate::site::{Pod, eventually, failing_daemon, tool};

/// The container's state now.
async fn state(cri: &coracle_tests::client::Cri, id: &str) -> cri::ContainerState {
    cri.status(id).await.unwrap().state()
}

#[tokio::test]
async fn a_start_that_outlives_its_daemon_is_starting_until_its_program_runs() {
    if on_peer() {
        return;
    }
    let mut daemon = failing_daemon().await;
    daemon.cri().pull(&images().base.reference).await.unwrap();
    daemon.rebase();
    let plain = Pod::run(&daemon, "plain").await;
    let mapped = Pod::run_config(&daemon, in_userns(&daemon, "mapped", 700_000)).await;
    let options = pod_security(&mut mapped.config.clone())
        .namespace_options
        .clone();
    let mut inside = sh("inside", "trap 'exit 9' TERM; while :; do sleep 0.1; done");
    security(&mut inside).namespace_options = options;
    let wasm = container("wasm", tool(), &["sleep"]);
    let ends = sh("ends", "exit 7");
    let absent = program("absent", &["/bin/absent"]);
    let stopped = program("stopped", &["sleep", "4321"]);
    let mut ids = Vec::new();
    for config in [&wasm, &ends, &absent, &stopped] {
        ids.push(plain.create(config).await.unwrap());
    }
    ids.push(mapped.create(&inside).await.unwrap());

    daemon.plan("guest.jail delay:22000\n").unwrap();
    let before = daemon.reached().len();
    let held = || {
        let reached = daemon.reached();
        reached[before..]
            .iter()
            .filter(|site| *site == "guest.jail")
            .count()
    };
    let mut starts = tokio::task::JoinSet::new();
    for id in ids.clone() {
        let cri = daemon.cri();
        starts.spawn(async move { cri.start(&id).await });
    }
    eventually("all starts are held", || held() == ids.len()).await;
    daemon.plan("").unwrap();
    daemon.restart().await.unwrap();
    for start in starts.join_all().await {
        start.expect_err("its daemon was killed");
    }

    let cri = daemon.cri();
    for id in &ids {
        assert_eq!(state(&cri, id).await, ContainerCreated, "{id}");
    }
    let [wasm, ends, absent, stopped, inside] = ids.try_into().unwrap();
    // A retry waits with the first try, a stop with the start.
    let (started, refused, ended) = tokio::join!(
        cri.start(&inside),
        cri.start(&absent),
        cri.stop(&stopped, 0)
    );
    started.unwrap();
    let refused = refused.expect_err("there is no such program");
    assert!(refused.message().contains("/bin/absent"), "{refused}");
    ended.unwrap();
    assert_eq!(state(&cri, &inside).await, ContainerRunning);
    assert_eq!(cri.status(&stopped).await.unwrap().exit_code, 137);
    let absent = cri.status(&absent).await.unwrap();
    assert_eq!(absent.state(), ContainerExited);
    assert_eq!(
        (absent.exit_code, absent.reason.as_str()),
        (127, "StartError")
    );
    let ends = cri.wait_exit(&ends).await.unwrap();
    assert_eq!(ends.exit_code, 7);
    assert!(ends.started_at > 0 && ends.started_at <= ends.finished_at);
    let end = Instant::now() + TIMEOUT;
    while state(&cri, &wasm).await != ContainerRunning && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(state(&cri, &wasm).await, ContainerRunning);

    // The process that is signalled and waited for is the program's own.
    cri.stop(&inside, 20).await.unwrap();
    assert_eq!(cri.status(&inside).await.unwrap().exit_code, 9);
    cri.stop(&wasm, 5).await.unwrap();
    assert_eq!(cri.status(&wasm).await.unwrap().exit_code, 143);
    daemon.finish().await.unwrap();
}
