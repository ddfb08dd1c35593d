//! Recovery at the start of a daemon: turns records, live keepers and exit records into drivers, then removes
//! everything that has no owner.
//!
//! Called by: [`super::Pods::open`], before any request is taken; [`super::unrecovered`] and the drivers retry later
//! what failed here. Pods are recovered in parallel, each keeper has its own deadline, and a pod whose recovery takes
//! longer than [`TIMEOUT`] is shown as it is while that continues: none delays another.
//! Invariants: what was acknowledged exists afterwards in the right state; what was not is completed or undone. An
//! object is removed only when a readable record says that it ended, or when it never had a record: a record that
//! cannot be read, has another format, or whose pod could not be recovered protects everything of its pod. A torn
//! record is moved aside with its directory, and logged, once none of its processes runs.
//! Must not know: requests.

pub mod pod;

use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::PodId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::pod::{Outcome, recover_pod};
use super::counters;
use super::disk::{Known, ids_in};
use super::driver::{Driver, Shared};
use super::error::Error;
use super::unrecovered::UnrecoveredPod;
use crate::blocking::{blocking, pass};
use crate::host::Owned;

/// How long the start waits for the recovery of all pods.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The result of recovery.
#[derive(Default)]
pub struct Recovered {
    /// Recovered pods, not yet running.
    pub drivers: Vec<Driver>,
    /// Pods that could not be recovered, not yet running.
    pub unrecovered: Vec<UnrecoveredPod>,
}

/// Recovers every pod on disk and sweeps the rest. Errors: the directory of records cannot be read.
pub async fn recover(shared: &Arc<Shared>) -> Result<Recovered, Error> {
    pass("recover.begin")?;
    let began = Instant::now();
    let found = ids_in::<PodId>(&shared.host.layout().pods_directory())?;
    let total = found.len();
    let tasks: Vec<(PodId, JoinHandle<Outcome>)> = found
        .into_iter()
        .map(|id| {
            let task = tokio::spawn(recover_pod(Arc::clone(shared), id.clone()));
            (id, task)
        })
        .collect();
    let mut owned = Owned::default();
    owned.parents.insert(shared.host.default_cgroup_parent());
    let mut recovered = gather(shared, tasks, &mut owned).await;
    for pod in &mut recovered.unrecovered {
        pod.add_to(&mut owned).await;
    }
    if owned.has_unreadable {
        // Images of unknown containers may be in use.
        shared.host.suspend_collection();
    }
    let (adopted, unrecovered) = (recovered.drivers.len(), recovered.unrecovered.len());
    let dead = total.saturating_sub(adopted + unrecovered);
    sweep(shared, owned, &recovered.drivers).await?;
    counters::recovered(began.elapsed(), adopted, dead, unrecovered);
    tracing::info!(sandboxes = adopted, unrecovered, "recovered");
    Ok(recovered)
}

/// Waits for the recovery of each pod, at most until the common deadline.
async fn gather(
    shared: &Arc<Shared>,
    tasks: Vec<(PodId, JoinHandle<Outcome>)>,
    owned: &mut Owned,
) -> Recovered {
    let deadline = Instant::now() + TIMEOUT;
    let mut recovered = Recovered::default();
    for (id, mut task) in tasks {
        match tokio::time::timeout_at(deadline, &mut task).await {
            Ok(Ok(Outcome::Driver(driver))) => {
                driver.add_to(owned);
                recovered.drivers.push(*driver);
            }
            Ok(Ok(Outcome::Dead(ids))) => owned.dead.extend(ids),
            Ok(Ok(Outcome::Unrecovered(known, why))) => {
                recovered
                    .unrecovered
                    .push(UnrecoveredPod::new(shared, id, known, why, None));
            }
            Ok(Err(error)) => {
                let why = format!("its recovery did not finish: {error}");
                recovered.unrecovered.push(UnrecoveredPod::new(
                    shared,
                    id,
                    Known::default(),
                    why,
                    None,
                ));
            }
            Err(_) => {
                let why = format!("its recovery takes longer than {} s", TIMEOUT.as_secs());
                let pod = UnrecoveredPod::new(shared, id, Known::default(), why, Some(task));
                recovered.unrecovered.push(pod);
            }
        }
    }
    recovered
}

async fn sweep(shared: &Arc<Shared>, owned: Owned, drivers: &[Driver]) -> Result<(), Error> {
    let host = Arc::clone(&shared.host);
    let hashes: Vec<String> = drivers
        .iter()
        .map(|driver| driver.engine_hash().to_owned())
        .collect();
    let has_unreadable = owned.has_unreadable;
    let mut found = shared.host().sweep(owned).await;
    // A pod with unusable records may need the code of any engine.
    if !has_unreadable {
        let swept = blocking("sweeping compiled code", move || {
            host.sweep_compiled(hashes)
        })
        .await;
        found.errors.extend(swept.err());
    }
    counters::swept(found.removed.len());
    for removed in found.removed {
        tracing::info!(removed, "swept");
    }
    for error in found.errors {
        tracing::error!(
            error = error.chain(),
            "an object without an owner could not be removed"
        );
    }
    Ok(())
}

/// Removes, within `limit`, what the node has for pods in general, if none is left: the counterpart at a daemon's end.
pub(super) async fn retire(shared: &Shared, limit: Duration) {
    let host = shared.host();
    let retired = blocking("retiring", move || {
        host.retire();
        Ok(())
    });
    if tokio::time::timeout(limit, retired).await.is_err() {
        tracing::warn!("the node is slow; the next daemon removes what no pod needs");
    }
}
