//! Containers: Create, Start, Stop, Remove, status, lists and events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tonic::Code;

use crate::site::{Pod, daemon, ended_soon, failing_daemon, refused, tool};

#[tokio::test]
async fn a_container_goes_through_its_states_with_its_times() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "states").await;
    let mut config = container("show", tool(), &["show"]);
    config.labels = BTreeMap::from([("k\u{e9}y".to_owned(), " v\n".to_owned())]);
    config.annotations = BTreeMap::from([("x/y".to_owned(), String::new())]);
    let id = pod.create(&config).await.unwrap();
    let created = pod.cri.status(&id).await.unwrap();
    assert_eq!(
        (created.state(), created.started_at, created.finished_at),
        (ContainerCreated, 0, 0)
    );
    assert!(created.created_at > 0);
    pod.cri.start(&id).await.unwrap();
    assert!(pod.cri.status(&id).await.unwrap().started_at >= created.created_at);
    let exited = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"));
    assert!(exited.finished_at >= exited.started_at && exited.created_at == created.created_at);

    let image = pod.cri.image(tool()).await.unwrap().unwrap();
    assert_eq!(
        (&exited.image_ref, &exited.image_id),
        (&image.id, &image.id)
    );
    assert_eq!(exited.image.unwrap().image, tool());
    assert_eq!(
        (&exited.labels, &exited.annotations),
        (&config.labels, &config.annotations)
    );
    assert_eq!(exited.metadata, config.metadata);
    assert_eq!(
        exited.log_path,
        daemon.container_log("states", "show").display().to_string()
    );
    let listed = pod.cri.list(None).await.unwrap().pop().unwrap();
    assert_eq!(
        (&listed.id, &listed.pod_sandbox_id, listed.state()),
        (&id, &pod.id, ContainerExited)
    );
    assert_eq!(
        (&listed.image_ref, &listed.labels),
        (&image.id, &config.labels)
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn exit_codes_and_reasons_are_reported() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "codes").await;
    for (code, reason) in [(0, "Completed"), (1, "Error"), (3, "Error"), (125, "Error")] {
        let config = container(
            &format!("exit-{code}"),
            tool(),
            &["exit", &code.to_string()],
        );
        let (status, _) = pod.finish(&daemon, &config).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn arguments_and_environment_are_the_images_unless_overridden() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "args").await;
    let mut config = container("args", tool(), &["show", "two words", ""]);
    config.envs = vec![
        cri::KeyValue {
            key: "FROM_CRI".into(),
            value: b"a=b c".to_vec(),
        },
        cri::KeyValue {
            key: "FROM_IMAGE".into(),
            value: b"no".to_vec(),
        },
    ];
    let (_, text) = pod.finish(&daemon, &config).await;
    for line in [
        "arg 0=/tool.wasm",
        "arg 1=show",
        "arg 2=two words",
        "arg 3=",
        "env FROM_CRI=a=b c",
        "env FROM_IMAGE=no",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line:?} in:\n{text}"
        );
    }
    assert_eq!(text.matches("FROM_IMAGE").count(), 1);
    let mut config = container("command", tool(), &["show"]);
    config.command = vec!["renamed".into()];
    let (_, text) = pod.finish(&daemon, &config).await;
    assert!(text.starts_with("arg 0=renamed\narg 1=show\n"), "{text}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stop_ends_by_signal_within_the_grace_and_by_kill_without_one() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "stop").await;
    for verb in ["sleep", "spin", "flood"] {
        let begun = Instant::now();
        let id = pod
            .start(&container(&format!("term-{verb}"), tool(), &[verb]))
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        pod.cri.stop(&id, 100).await.unwrap();
        let status = pod.cri.status(&id).await.unwrap();
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerExited, 143),
            "{verb}"
        );
        assert_eq!(status.reason, "Error");
        ended_soon(begun);

        let id = pod
            .start(&container(&format!("kill-{verb}"), tool(), &[verb]))
            .await;
        pod.cri.stop(&id, 0).await.unwrap();
        let status = pod.cri.status(&id).await.unwrap();
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerExited, 137),
            "{verb}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stop_and_remove_are_idempotent_in_every_state() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "idem").await;
    let absent = "0".repeat(64);
    pod.cri.stop(&absent, 1).await.unwrap();
    pod.cri.remove(&absent).await.unwrap();
    refused(pod.cri.status(&absent).await, Code::NotFound, &[&absent]);
    refused(pod.cri.start(&absent).await, Code::NotFound, &[&absent]);

    let created = pod
        .create(&container("created", tool(), &["show"]))
        .await
        .unwrap();
    pod.cri.stop(&created, 1).await.unwrap();
    assert_eq!(
        pod.cri.status(&created).await.unwrap().state(),
        ContainerCreated
    );
    let exited = pod.tool(&["exit", "4"]).await;
    let before = pod.cri.wait_exit(&exited).await.unwrap();
    pod.cri.stop(&exited, 1).await.unwrap();
    assert_eq!(pod.cri.status(&exited).await.unwrap(), before);
    let running = pod.tool(&["sleep"]).await;
    for id in [created, exited, running] {
        for _ in 0..2 {
            pod.cri.remove(&id).await.unwrap();
            refused(pod.cri.status(&id).await, Code::NotFound, &[&id]);
        }
    }
    // The names are free again.
    pod.create(&container("created", tool(), &["show"]))
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_starts_once() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "once").await;
    let running = pod.tool(&["sleep"]).await;
    refused(
        pod.cri.start(&running).await,
        Code::FailedPrecondition,
        &[&running],
    );
    assert_eq!(
        pod.cri.status(&running).await.unwrap().state(),
        ContainerRunning
    );
    let exited = pod.tool(&["show"]).await;
    let before = pod.cri.wait_exit(&exited).await.unwrap();
    refused(
        pod.cri.start(&exited).await,
        Code::FailedPrecondition,
        &[&exited],
    );
    assert_eq!(pod.cri.status(&exited).await.unwrap(), before);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_name_is_given_out_once_and_its_attempt_makes_it_another() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "names").await;
    let mut config = container("same", tool(), &["show"]);
    let first = pod.create(&config).await.unwrap();
    match pod.create(&config).await {
        Ok(second) => assert_eq!(second, first),
        Err(refusal) => assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal}"),
    }
    assert_eq!(pod.cri.list(None).await.unwrap().len(), 1);
    config.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(pod.create(&config).await.unwrap(), first);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_later_stop_may_shorten_the_grace() {
    let daemon = failing_daemon().await;
    let pod = Pod::run(&daemon, "shorten").await;
    let id = pod.tool(&["sleep"]).await;
    // The signal is lost, so only the end of the grace period can end the guest.
    daemon.plan("stop.signal error\n").unwrap();
    let (cri, slow) = (pod.cri.clone(), id.clone());
    let long = tokio::spawn(async move { cri.stop(&slow, 100).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    pod.cri.stop(&id, 1).await.unwrap();
    ended_soon(begun);
    let _ = long.await.unwrap();
    assert_eq!(pod.cri.status(&id).await.unwrap().state(), ContainerExited);
    daemon.plan("").unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lists_filter_by_id_pod_state_and_labels() {
    let daemon = daemon().await;
    let one = Pod::run(&daemon, "one").await;
    let two = Pod::run(&daemon, "two").await;
    let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
    let mut labelled = container("a", tool(), &["show"]);
    labelled.labels = labels.clone();
    let a = one.create(&labelled).await.unwrap();
    let b = one.tool(&["sleep"]).await;
    let c = container("c", tool(), &["show"]);
    let c = two.create(&c).await.unwrap();
    let any = cri::ContainerFilter::default;
    let by_id = cri::ContainerFilter {
        id: b[..12].into(),
        ..any()
    };
    let by_pod = cri::ContainerFilter {
        pod_sandbox_id: one.id.clone(),
        ..any()
    };
    let by_state = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: ContainerRunning as i32,
        }),
        ..any()
    };
    let by_label = cri::ContainerFilter {
        label_selector: labels,
        ..any()
    };
    for (filter, expected) in [
        (any(), &[&a, &b, &c][..]),
        (by_id, &[&b]),
        (by_pod, &[&a, &b]),
        (by_state, &[&b]),
        (by_label, &[&a]),
    ] {
        let found = one.cri.list(Some(filter.clone())).await.unwrap();
        let found: BTreeSet<String> = found.into_iter().map(|container| container.id).collect();
        let expected: BTreeSet<String> = expected.iter().map(|id| (*id).clone()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn each_change_is_an_event_in_order() {
    use cri::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let daemon = daemon().await;
    let mut runtime = daemon.cri().runtime.clone();
    let mut events = runtime
        .get_container_events(cri::GetEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let pod = Pod::run(&daemon, "events").await;
    let id = pod.tool(&["exit", "7"]).await;
    pod.cri.wait_exit(&id).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
    let (mut of_container, mut of_pod) = (Vec::new(), Vec::new());
    while of_pod.last() != Some(&ContainerDeletedEvent) {
        let event = tokio::time::timeout(TIMEOUT, events.message()).await;
        let event = event.unwrap().unwrap().unwrap();
        assert!(event.created_at > 0);
        assert_eq!(event.pod_sandbox_status.as_ref().unwrap().id, pod.id);
        if event.container_id == id {
            if event.container_event_type() == ContainerStoppedEvent {
                let status = event
                    .containers_statuses
                    .iter()
                    .find(|status| status.id == id)
                    .unwrap();
                assert_eq!(status.exit_code, 7);
            }
            of_container.push(event.container_event_type());
        } else {
            assert_eq!(event.container_id, pod.id);
            of_pod.push(event.container_event_type());
        }
    }
    let whole = [
        ContainerCreatedEvent,
        ContainerStartedEvent,
        ContainerStoppedEvent,
        ContainerDeletedEvent,
    ];
    assert_eq!(of_container, whole);
    assert_eq!(of_pod.first(), Some(&ContainerCreatedEvent));
    drop(events);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stdin_is_closed_unless_requested() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "stdin").await;
    let (status, text) = pod
        .finish(&daemon, &container("closed", tool(), &["cat"]))
        .await;
    assert_eq!((status.exit_code, text.as_str()), (0, "stdin ended\n"));
    let mut config = container("open", tool(), &["cat"]);
    config.stdin = true;
    let id = pod.start(&config).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(pod.cri.status(&id).await.unwrap().state(), ContainerRunning);
    daemon.finish().await.unwrap();
}
