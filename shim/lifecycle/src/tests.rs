//! The whole lifecycle over a host in memory: no process, no mount, no network.

mod world;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::record::{ContainerRecord, PodRecord};
use crate::scratch::Scratch;
use crate::state::{ContainerPhase, Live, PodPhase, ProcessFact, Run};
use crate::store::{self, Loaded, Slot};
use crate::{ContainerState, Host as _, Kind, NoPlugins, Pods, RoundTrip};
use world::World;

/// Records written by an earlier daemon.
const POD: &str = include_str!("../fuzz/pod-record/p-818");
const CONTAINER: &str = include_str!("../fuzz/container-record/c-1985");
const KEEPER: ProcessFact = ProcessFact {
    pid: 1,
    start_time: 0,
};

fn written<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

/// A ready pod of an earlier boot.
fn ready_pod() -> PodRecord {
    let live = Live {
        keeper: KEEPER,
        attachment: None,
    };
    PodRecord {
        phase: PodPhase::Ready(live),
        boot: "long ago".to_owned(),
        ..written(POD)
    }
}

/// Writes records where a daemon finds them.
fn leave(world: &World, pod: &PodRecord, container: Option<&ContainerRecord>) {
    let layout = world.layout();
    let save = |directory: std::path::PathBuf| {
        std::fs::create_dir_all(&directory).unwrap();
        Slot::new(directory, world.syncer())
    };
    save(layout.pod_directory(&pod.id)).save(pod).unwrap();
    if let Some(container) = container {
        let directory = layout.container_directory(&pod.id, &container.id);
        save(directory).save(container).unwrap();
    }
}

#[tokio::test]
async fn a_failed_sandbox_leaves_no_name_ids_or_record() {
    let dir = Scratch::new("lifecycle-unmade");
    let world = World::new(&dir);
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    let config = (*written::<PodRecord>(POD).config).clone();
    // The second call is a retry of the first one, which is under way.
    let (first, second) = tokio::join!(pods.run_pod(config.clone()), async {
        tokio::task::yield_now().await;
        let retry = pods.run_pod(config.clone());
        world.gate.add_permits(1);
        retry.await
    });
    for outcome in [first, second] {
        assert_eq!(outcome.unwrap_err().kind(), Kind::Exhausted);
    }
    assert_eq!(world.count("create_sandbox"), 1);
    assert!(pods.pods().is_empty());
    // The name and the ids are released right after the answer.
    world.gate.add_permits(1);
    while world.count("create_sandbox") < 2 {
        assert!(pods.run_pod(config.clone()).await.is_err());
    }
    while world.leased() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let left = std::fs::read_dir(world.layout().pods_directory()).unwrap();
    assert_eq!(left.count(), 0, "a record is left");
}

#[tokio::test]
async fn a_sandbox_name_is_refused_while_another_of_that_name_is_created() {
    let dir = Scratch::new("lifecycle-name");
    let world = World::new(&dir);
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    let config = (*written::<PodRecord>(POD).config).clone();
    let first = tokio::spawn({
        let (pods, config) = (pods.clone(), config.clone());
        async move { pods.run_pod(config).await }
    });
    while world.count("create_sandbox") == 0 {
        tokio::task::yield_now().await;
    }
    let mut other = config;
    other.hostname = "other".to_owned();
    let refused = pods.run_pod(other).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::NameTaken);
    world.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap_err().kind(), Kind::Exhausted);
}

#[tokio::test]
async fn after_a_reboot_containers_have_ended_and_can_be_removed() {
    let dir = Scratch::new("lifecycle-reboot");
    let world = World::new(&dir);
    let (pod, mut container) = (ready_pod(), written::<ContainerRecord>(CONTAINER));
    let run = Run {
        process: KEEPER,
        started_at: 7,
    };
    container.phase = ContainerPhase::Running(run);
    leave(&world, &pod, Some(&container));
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    assert_eq!(
        (world.count("tear_down_sandbox"), world.count("sweep")),
        (1, 1)
    );
    let view = pods.pod(&pod.id).unwrap();
    assert!(!view.ready);
    let ended = pods.container(&container.id).unwrap();
    assert_eq!(
        (ended.state, ended.exit_code),
        (ContainerState::Exited, 255)
    );
    // A second daemon finds the same state.
    let directory = world.layout().pod_directory(&pod.id);
    let Loaded::Found(saved, _) = store::load::<PodRecord>(&directory, world.syncer()) else {
        panic!("the record is gone");
    };
    assert_eq!(saved.phase, PodPhase::NotReady);
    pods.remove_pod(&pod.id).await.unwrap();
    assert!(pods.pods().is_empty() && pods.containers().is_empty());
    assert!(!directory.exists());
    assert_eq!(world.count("forget_container"), 1);
}

#[tokio::test]
async fn a_sandbox_that_was_never_acknowledged_is_undone() {
    let dir = Scratch::new("lifecycle-unborn");
    let world = World::new(&dir);
    let pod: PodRecord = written(POD);
    assert_eq!(pod.phase, PodPhase::Starting);
    leave(&world, &pod, None);
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    assert_eq!(
        (world.count("tear_down_sandbox"), world.count("forget_pod")),
        (1, 1)
    );
    assert!(pods.pods().is_empty());
    assert!(!world.layout().pod_directory(&pod.id).exists());
}

#[tokio::test]
async fn a_draining_lifecycle_refuses_sandboxes() {
    let dir = Scratch::new("lifecycle-drain");
    let world = World::new(&dir);
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    pods.drain(Duration::from_secs(1)).await;
    let config = (*written::<PodRecord>(POD).config).clone();
    let refused = pods.run_pod(config).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Draining);
    assert_eq!(world.count("create_sandbox"), 0);
}

#[tokio::test]
async fn a_round_trip_names_the_drivers_that_hang_and_does_not_wait_for_them() {
    let dir = Scratch::new("lifecycle-round-trip");
    let world = World::new(&dir);
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    let limit = Duration::from_millis(100);
    assert_eq!(pods.round_trip(7, limit).await, RoundTrip::default());
    let pod = ready_pod();
    // A mailbox that nobody reads.
    let (mailbox, unread) = crate::driver::Driver::mailbox();
    pods.shared
        .registry
        .claim(&pod.config.name, &pod.id, mailbox);
    let name = &pod.config.name;
    let hung = pods.round_trip(7, limit).await;
    let silent = vec![format!("{}/{}", name.namespace, name.name)];
    assert_eq!(hung, RoundTrip { asked: 1, silent });
    // A driver that has ended answers by that.
    drop(unread);
    let answered = pods.round_trip(8, limit).await;
    assert_eq!((answered.asked, answered.silent.len()), (1, 0));
}

#[tokio::test]
async fn an_unrecovered_sandbox_answers_while_its_stop_hangs() {
    let dir = Scratch::new("lifecycle-unrecovered-stop");
    let world = World::new(&dir);
    let pod = ready_pod();
    leave(&world, &pod, None);
    let directory = world.layout().pod_directory(&pod.id);
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            // Of a later format: neither read nor thrown away.
            let text = std::fs::read_to_string(&path).unwrap();
            let mut fields = text.splitn(3, ' ');
            let (magic, rest) = (fields.next().unwrap(), fields.nth(1).unwrap());
            std::fs::write(path, format!("{magic} 99 {rest}")).unwrap();
        }
    }
    let pods = Pods::open(world.clone(), Arc::new(NoPlugins))
        .await
        .unwrap();
    let stopping = {
        let (pods, id) = (pods.clone(), pod.id.clone());
        tokio::spawn(async move { pods.remove_pod(&id).await })
    };
    let begun = async {
        while world.count("end_unreadable") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let long = Duration::from_secs(60);
    tokio::time::timeout(long, begun).await.unwrap();
    // Its stop hangs for as long as this takes.
    let inspected = tokio::time::timeout(long, pods.inspect(&pod.id)).await;
    assert_eq!(inspected.unwrap().unwrap().phase, "not recovered");
    world.ends.add_permits(1);
    stopping.await.unwrap().unwrap();
    assert_eq!(
        pods.inspect(&pod.id).await.unwrap_err().kind(),
        Kind::Missing
    );
}
