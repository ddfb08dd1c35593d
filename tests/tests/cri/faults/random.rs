//! Kills at random moments under many pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container};
use coracle_tests::daemon::Daemon;
use coracle_tests::dice::Dice;
use coracle_tests::procs::{self, Role};
use coracle_tests::retry;

use super::life::Life;
use crate::site::{daemon, tool};

#[tokio::test]
async fn two_hundred_pods_live_and_die_under_random_kills() {
    tokio::task::LocalSet::new().run_until(random_kills()).await;
}

async fn random_kills() {
    const CYCLES: usize = 200;
    let (mut dice, seed) = Dice::fresh();
    let mut daemon = daemon().await;
    let left = Arc::new(AtomicUsize::new(CYCLES));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (cri, left) = (daemon.cri(), Arc::clone(&left));
        let pods: Vec<_> = (0..CYCLES)
            .map(|n| daemon.pod(&format!("w{worker}-{n}")))
            .collect();
        workers.spawn_local(async move {
            for pod in pods {
                if left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                    .is_err()
                {
                    break;
                }
                cycle(&cri, pod).await?;
            }
            Ok::<_, String>(())
        });
    }
    loop {
        let pause = Duration::from_millis(60 + dice.below(120));
        match tokio::time::timeout(pause, workers.join_next()).await {
            Ok(None) => break,
            Ok(Some(done)) => done
                .unwrap()
                .unwrap_or_else(|why| panic!("seed {seed}: {why}")),
            Err(_) => kill_one(&mut daemon, &mut dice).await,
        }
    }
    daemon
        .finish()
        .await
        .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
}

async fn kill_one(daemon: &mut Daemon, dice: &mut Dice) {
    let role = [Role::Daemon, Role::Spawner, Role::Keeper, Role::Guest][dice.below(4) as usize];
    if role == Role::Daemon {
        daemon.restart().await.unwrap();
        return;
    }
    let candidates = daemon.processes(role);
    if !candidates.is_empty() {
        procs::kill(candidates[dice.below(candidates.len() as u64) as usize].pid);
    }
}

/// One pod with one container that exits 5, from nothing to nothing. A kill on the way may end it with 137.
async fn cycle(cri: &Cri, config: cri::PodSandboxConfig) -> Result<(), String> {
    let name = config
        .metadata
        .as_ref()
        .map(|m| m.name.clone())
        .unwrap_or_default();
    let salt = String::new();
    let life = Life {
        cri: cri.clone(),
        pod: config,
        salt,
        pause: Duration::ZERO,
        restart_requested: Arc::default(),
        harmed: true,
    };
    let pod = life
        .retry("run", async || retry::run_pod(cri, &life.pod).await)
        .await?;
    exit_five(&life, &pod)
        .await
        .map_err(|why| format!("{name}: {why}"))?;
    life.retry("stop pod", async || cri.stop_pod(&pod).await)
        .await?;
    life.retry("remove pod", async || cri.remove_pod(&pod).await)
        .await?;
    let listed = life
        .retry("list", async || cri.list_pods(None).await)
        .await?;
    if listed.iter().any(|listed| listed.id == pod) {
        return Err(format!("{name}: removed pod {pod} is still listed"));
    }
    Ok(())
}

/// Runs the container, if the pod still lives.
async fn exit_five(life: &Life, pod: &str) -> Result<(), String> {
    let cri = &life.cri;
    let workload = container("c", tool(), &["exit", "5"]);
    let created = life
        .tolerate("create", async || {
            retry::create(cri, pod, &workload, &life.pod).await
        })
        .await?;
    let Some(id) = created else { return Ok(()) };
    let started = life
        .tolerate("start", async || retry::start(cri, &id).await)
        .await?;
    match started {
        Some(()) => life.expect_exit(&id, 5).await,
        None => Ok(()),
    }
}
