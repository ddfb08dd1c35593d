//! At start: from records, live keepers and exit records to drivers; then everything that nobody owns is removed.
//!
//! Called by: [`super::Pods::open`], before any request is taken; what could not be recovered then is tried again by
//! [`super::kept`] and the drivers. Pods are recovered in parallel, each keeper is met under its own deadline, and a pod
//! that takes longer than [`PATIENCE`] is shown as it is while that goes on: none delays another.
//! Invariants: what was acknowledged is there afterwards with the right state; what was not is finished or undone. Only
//! what a readable record calls ended, or what never had one, is removed: a record that cannot be read, is of another
//! format, or whose pod could not be brought into order, keeps everything of its pod. A torn record is moved aside with
//! what belongs to it, and named, once nothing of it runs.
//! Not here: requests.

mod read;
mod reboot;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::process::Process;
use coracle_spec::id::{ContainerId, PodId};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::driver::{Connection, Driver, FoundContainer, FoundKeeper, Resumed, Shared};
use super::error::Error;
use super::kept::{Kept, Known};
use super::record::PodRecord;
use super::registry::Claim;
use super::state::PodPhase;
use super::store::Slot;
use crate::blocking::{blocking, io_error, pass, runtime_error};
use crate::host::Owned;
pub use read::read_container;
use read::{OnDisk, read_pod};
use reboot::after_reboot;

/// How long a keeper may take to greet while nothing else is served; it is called again later.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(1);
/// How long the start waits for the recovery of all pods.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the records of one pod.
pub enum Outcome {
    /// It goes on.
    Driver(Box<Driver>),
    /// It never came to be, or its torn record was moved aside and nothing of it runs: its id and its containers'.
    Dead(Vec<String>),
    /// It is left as it is, for this reason.
    Kept(Known, String),
}

/// What was found at the start.
#[derive(Default)]
pub struct Recovered {
    /// Pods that go on, not yet running.
    pub drivers: Vec<Driver>,
    /// Pods that are left as they are, not yet running.
    pub kept: Vec<Kept>,
}

/// Resumes every pod on disk and sweeps the rest. Errors: the directory of records cannot be read.
pub async fn recover(shared: &Arc<Shared>) -> Result<Recovered, Error> {
    pass("recover.begin")?;
    let found = ids_in::<PodId>(&shared.host.layout().pods_directory())?;
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
    for kept in &mut recovered.kept {
        kept.declare(&mut owned).await;
    }
    if owned.has_unreadable {
        // Nobody knows which images its containers use.
        shared.host.suspend_collection();
    }
    sweep(shared, owned, &recovered.drivers).await?;
    tracing::info!(
        sandboxes = recovered.drivers.len(),
        kept = recovered.kept.len(),
        "recovered"
    );
    Ok(recovered)
}

/// Waits for the recoveries of all pods, each no longer than until the common deadline.
async fn gather(
    shared: &Arc<Shared>,
    tasks: Vec<(PodId, JoinHandle<Outcome>)>,
    owned: &mut Owned,
) -> Recovered {
    let deadline = Instant::now() + PATIENCE;
    let mut recovered = Recovered::default();
    for (id, mut task) in tasks {
        match tokio::time::timeout_at(deadline, &mut task).await {
            Ok(Ok(Outcome::Driver(driver))) => {
                driver.declare(owned);
                recovered.drivers.push(*driver);
            }
            Ok(Ok(Outcome::Dead(ids))) => owned.dead.extend(ids),
            Ok(Ok(Outcome::Kept(known, why))) => {
                recovered.kept.push(Kept::new(shared, id, known, why, None));
            }
            Ok(Err(error)) => {
                let why = format!("its recovery did not finish: {error}");
                recovered
                    .kept
                    .push(Kept::new(shared, id, Known::default(), why, None));
            }
            Err(_) => {
                let why = format!("its recovery takes longer than {} s", PATIENCE.as_secs());
                let kept = Kept::new(shared, id, Known::default(), why, Some(task));
                recovered.kept.push(kept);
            }
        }
    }
    recovered
}

/// The ids that are names in a directory; none when it is not there. Errors: it cannot be listed.
pub fn ids_in<T: std::str::FromStr>(directory: &Path) -> Result<Vec<T>, Error> {
    let failed = |error| {
        io_error(
            format!("list the records in {}", directory.display()),
            error,
        )
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<T>().ok()));
    }
    Ok(ids)
}

/// Recovers one pod, or finds out why that cannot be.
pub async fn recover_pod(shared: Arc<Shared>, id: PodId) -> Outcome {
    let (reader, of) = (Arc::clone(&shared), id.clone());
    let read = blocking("reading the records of a sandbox", move || {
        Ok(read_pod(&reader, &of))
    });
    let (pod, slot, containers, dead) = match read.await {
        Ok(OnDisk::Absent(containers)) => return Outcome::Dead(ids_of(&id, &containers)),
        Ok(OnDisk::Kept(known, why)) => return Outcome::Kept(known, why),
        Ok(OnDisk::Found {
            pod,
            slot,
            containers,
            dead,
        }) => (pod, slot, containers, dead),
        Err(error) => return Outcome::Kept(Known::default(), error.chain()),
    };
    let known = Known::of(&pod, &containers);
    match bring_back(&shared, *pod, slot, containers).await {
        Ok(Outcome::Driver(mut driver)) => {
            driver.bury(dead);
            Outcome::Driver(driver)
        }
        Ok(other) => other,
        Err(error) => Outcome::Kept(known, error.chain()),
    }
}

async fn bring_back(
    shared: &Arc<Shared>,
    mut pod: PodRecord,
    mut slot: Slot,
    mut containers: Vec<FoundContainer>,
) -> Result<Outcome, Error> {
    if pod.phase == PodPhase::Starting {
        return drop_unborn(shared, &pod).await;
    }
    if pod.boot != shared.boot {
        after_reboot(shared, &mut pod, &mut slot, &mut containers).await?;
    }
    let keeper = find_keeper(shared, &pod).await?;
    let found = Resumed { containers, keeper };
    Ok(Outcome::Driver(Box::new(
        resume(shared, pod, slot, found).await,
    )))
}

fn ids_of(pod: &PodId, containers: &[ContainerId]) -> Vec<String> {
    let containers = containers.iter().map(|id| id.as_str().to_owned());
    containers.chain([pod.as_str().to_owned()]).collect()
}

/// A sandbox that was never acknowledged: its keeper has died with its daemon, the rest is removed here.
async fn drop_unborn(shared: &Arc<Shared>, pod: &PodRecord) -> Result<Outcome, Error> {
    shared.host().tear_down_sandbox(pod, None, None).await?;
    let (host, id) = (Arc::clone(&shared.host), pod.id.clone());
    blocking("forgetting a sandbox", move || host.forget_pod(&id)).await?;
    tracing::info!(pod = %pod.id, "a half-made sandbox was undone");
    Ok(Outcome::Dead(vec![pod.id.as_str().to_owned()]))
}

async fn resume(shared: &Arc<Shared>, pod: PodRecord, slot: Slot, found: Resumed) -> Driver {
    let mail = Driver::mailbox();
    if pod.config.userns.is_none() {
        shared.host.claim_ids(pod.range);
    }
    claim_levels(shared, &pod, &found.containers);
    if let Claim::Held(other, _) = shared
        .registry
        .claim(&pod.config.name, &pod.id, mail.0.clone())
    {
        // Its own id: it was kept before.
        if other != pod.id {
            tracing::error!(pod = %pod.id, other = %other, "two sandboxes have one name");
        }
        shared.registry.adopt(&pod.id, mail.0.clone());
    }
    let share = shared.requests.take_over(pod.config.as_ref());
    Driver::new(Arc::clone(shared), pod, slot, share, mail)
        .resume(found)
        .await
}

/// Keeps the SELinux categories of a pod and its containers from being handed out again.
fn claim_levels(shared: &Shared, pod: &PodRecord, containers: &[FoundContainer]) {
    if let Some(level) = &pod.selinux_level {
        shared.host.claim_level(pod.id.as_str(), level);
    }
    for container in containers {
        if let FoundContainer::Readable(record, _) = container {
            shared.host.claim_own_level(&record.id, &record.config);
        }
    }
}

/// The keeper of a pod; `None` if it is dead or the pod needs none. Errors: it cannot be told whether it lives.
async fn find_keeper(shared: &Arc<Shared>, pod: &PodRecord) -> Result<Option<FoundKeeper>, Error> {
    let Some(fact) = pod.phase.live().map(|live| live.keeper) else {
        return Ok(None);
    };
    let opened = Process::open(fact.pid, fact.start_time).map_err(|error| {
        let what = format!(
            "look at the keeper of sandbox {} (pid {})",
            pod.id, fact.pid
        );
        runtime_error(what, error)
    })?;
    // One that has ended may linger as a zombie until somebody reaps it.
    let Some(process) = opened.filter(Process::is_alive).map(Arc::new) else {
        return Ok(None);
    };
    let greeted = match pass("recover.adopt") {
        Ok(()) => shared.host().connect(&pod.id, ADOPTION_PATIENCE).await,
        Err(error) => Err(error),
    };
    let connection = match greeted {
        Ok((keeper, greeting, events)) => Some(Connection {
            keeper,
            greeting,
            events,
        }),
        Err(error) => {
            tracing::error!(pod = %pod.id, error = error.chain(), "the keeper does not answer; its pod goes on without");
            None
        }
    };
    Ok(Some(FoundKeeper {
        process,
        connection,
    }))
}

async fn sweep(shared: &Arc<Shared>, owned: Owned, drivers: &[Driver]) -> Result<(), Error> {
    let host = Arc::clone(&shared.host);
    let hashes: Vec<String> = drivers
        .iter()
        .map(|driver| driver.engine_hash().to_owned())
        .collect();
    let found = blocking("sweeping", move || {
        let mut found = host.sweep(&owned);
        // A pod of which little is known may need the code of any engine.
        if !owned.has_unreadable
            && let Err(error) = host.sweep_compiled(hashes)
        {
            found.errors.push(error);
        }
        Ok(found)
    })
    .await?;
    for removed in found.removed {
        tracing::info!(removed, "swept");
    }
    for error in found.errors {
        tracing::error!(
            error = error.chain(),
            "something nobody owns could not be removed"
        );
    }
    Ok(())
}
