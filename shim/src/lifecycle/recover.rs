//! At start: from records, live keepers and exit records to drivers; then everything that nobody owns is removed.
//!
//! Called by: [`super::Pods::open`], before any request is taken. Keepers are met in parallel, each under its own
//! deadline: one that hangs delays no other.
//! Invariants: what was acknowledged is there afterwards with the right state; what was not is finished or undone; a
//! torn record is moved aside and named, never read as "nothing there".
//! Not here: requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_runtime::process::Process;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::clock;
use super::driver::{Connection, Driver, FoundKeeper, Resumed, Shared};
use super::error::Error;
use super::names::Claim;
use super::record::{ContainerRecord, PodRecord};
use super::state::{ContainerPhase, Ended, PodPhase, Reason};
use super::store::{self, Loaded, Slot};
use crate::host::{Owned, blocking, io_error, pass};

/// How long a keeper may take to greet while nothing else is served; it is called again later.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(1);

/// What became of the records of one pod.
enum Outcome {
    /// It goes on.
    Driver(Box<Driver>),
    /// It never came to be, or its record is broken: ids of it and its containers, whose processes must end.
    Dead(Vec<String>),
}

/// Resumes every pod on disk and sweeps the rest. Returns the drivers, not yet running.
/// Errors: the directory of records cannot be read.
pub async fn recover(shared: &Arc<Shared>) -> Result<Vec<Driver>, Error> {
    pass("recover.begin")?;
    let mut pods = JoinSet::new();
    for directory in directories(&shared.host.pods_directory())? {
        let shared = Arc::clone(shared);
        pods.spawn(async move { recover_pod(&shared, &directory).await });
    }
    let mut drivers = Vec::new();
    let mut owned = Owned::default();
    owned.parents.insert(shared.host.default_cgroup_parent());
    while let Some(joined) = pods.join_next().await {
        match joined {
            Ok(Ok(Outcome::Driver(driver))) => {
                driver.declare(&mut owned);
                drivers.push(*driver);
            }
            Ok(Ok(Outcome::Dead(ids))) => owned.dead.extend(ids),
            Ok(Err(error)) => {
                // Nobody knows which images its containers use.
                shared.host.images().suspend_collection();
                tracing::error!(error = error.chain(), "a sandbox was not recovered");
            }
            Err(error) => {
                shared.host.images().suspend_collection();
                tracing::error!(error = %error, "recovery of a sandbox did not finish");
            }
        }
    }
    sweep(shared, owned, &drivers).await?;
    tracing::info!(sandboxes = drivers.len(), "recovered");
    Ok(drivers)
}

fn directories(of: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| io_error(format!("list the records in {}", of.display()), error);
    let entries = match std::fs::read_dir(of) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths: std::io::Result<Vec<PathBuf>> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect();
    paths.map_err(failed)
}

async fn recover_pod(shared: &Arc<Shared>, directory: &Path) -> Result<Outcome, Error> {
    let (host, path) = (Arc::clone(&shared.host), directory.to_owned());
    let quarantine = host.quarantine();
    let read = blocking("reading the records of a sandbox", move || {
        let Some((pod, slot)) = load::<PodRecord>(&path, &quarantine)? else {
            return Ok(None);
        };
        let mut containers: Vec<(ContainerRecord, Slot)> = Vec::new();
        for directory in directories(&path.join("containers"))? {
            containers.extend(load::<ContainerRecord>(&directory, &quarantine)?);
        }
        Ok(Some((pod, slot, containers)))
    })
    .await?;
    let Some((mut pod, mut slot, mut containers)) = read else {
        return Ok(Outcome::Dead(ids_below(directory)));
    };
    if pod.phase == PodPhase::Starting {
        return drop_unborn(shared, &pod).await;
    }
    if pod.boot != shared.boot {
        after_reboot(shared, &mut pod, &mut slot, &mut containers).await?;
    }
    Ok(Outcome::Driver(Box::new(
        resume(shared, pod, slot, containers).await,
    )))
}

/// A record; `None` when there is none or when it was broken and moved aside.
fn load<T: DeserializeOwned>(
    directory: &Path,
    quarantine: &Path,
) -> Result<Option<(T, Slot)>, Error> {
    let loaded = store::load(directory);
    match loaded
        .map_err(|error| io_error(format!("read the record in {}", directory.display()), error))?
    {
        Loaded::Found(record, slot) => Ok(Some((record, slot))),
        Loaded::Absent => Ok(None),
        Loaded::Torn(why) => {
            let moved = store::quarantine(directory, quarantine);
            let moved = moved
                .map_err(|error| io_error(format!("quarantine {}", directory.display()), error))?;
            tracing::error!(record = why, quarantine = %moved.display(), "a broken record was moved aside");
            Ok(None)
        }
    }
}

/// The ids that a broken or missing record stood for: its directory's name and those of its containers.
fn ids_below(directory: &Path) -> Vec<String> {
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let containers = directories(&directory.join("containers")).unwrap_or_default();
    name(directory)
        .into_iter()
        .chain(containers.iter().filter_map(|path| name(path)))
        .collect()
}

/// A sandbox that was never acknowledged: its keeper has died with its daemon, the rest is removed here.
async fn drop_unborn(shared: &Arc<Shared>, pod: &PodRecord) -> Result<Outcome, Error> {
    shared.host.lower(pod, None, None).await?;
    let (host, id) = (Arc::clone(&shared.host), pod.id.clone());
    blocking("forgetting a sandbox", move || host.forget_pod(&id)).await?;
    tracing::info!(pod = %pod.id, "a half-made sandbox was undone");
    Ok(Outcome::Dead(vec![pod.id.as_str().to_owned()]))
}

/// Another boot: nothing lives. What ran has ended unseen, what had ended keeps its end.
async fn after_reboot(
    shared: &Arc<Shared>,
    pod: &mut PodRecord,
    slot: &mut Slot,
    containers: &mut [(ContainerRecord, Slot)],
) -> Result<(), Error> {
    if pod.phase.live().is_some() {
        shared.host.lower(pod, None, None).await?;
    }
    for (container, slot) in containers {
        if container.phase.is_live() {
            container.phase = ContainerPhase::Exited(Ended {
                started_at: container.phase.run().map_or(0, |run| run.started_at),
                finished_at: clock::wall(),
                code: 255,
                reason: Reason::Unknown,
                message: "the node restarted".to_owned(),
            });
            let saved = slot.save(container);
            saved.map_err(|error| {
                io_error(
                    format!("save the record of container {}", container.id),
                    error,
                )
            })?;
        }
    }
    // Last, so that a crash before it does all of this again.
    pod.phase = PodPhase::NotReady;
    pod.boot.clone_from(&shared.boot);
    slot.save(pod)
        .map_err(|error| io_error(format!("save the record of sandbox {}", pod.id), error))
}

async fn resume(
    shared: &Arc<Shared>,
    pod: PodRecord,
    slot: Slot,
    containers: Vec<(ContainerRecord, Slot)>,
) -> Driver {
    let mail = Driver::mailbox();
    if pod.wish.userns.is_none() {
        shared.host.ids().claim(pod.range);
    }
    if let Claim::Held(other, _) = shared.names.claim(&pod.wish.name, &pod.id, mail.0.clone()) {
        tracing::error!(pod = %pod.id, other = %other, "two sandboxes have one name");
        shared.names.adopt(&pod.id, mail.0.clone());
    }
    let keeper = find_keeper(shared, &pod).await;
    Driver::new(Arc::clone(shared), pod, slot, mail)
        .resume(Resumed { containers, keeper })
        .await
}

async fn find_keeper(shared: &Arc<Shared>, pod: &PodRecord) -> Option<FoundKeeper> {
    let fact = pod.phase.live()?.keeper;
    let opened = Process::open(fact.pid, fact.start_time).unwrap_or_else(|error| {
        tracing::error!(pod = %pod.id, error = error.chain(), "the keeper's process cannot be looked at");
        None
    });
    // One that has ended may linger as a zombie until somebody reaps it.
    let process = Arc::new(opened.filter(Process::is_alive)?);
    let greeted = match pass("recover.adopt") {
        Ok(()) => shared.host.connect(&pod.id, ADOPTION_PATIENCE).await,
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
    Some(FoundKeeper {
        process,
        connection,
    })
}

async fn sweep(shared: &Arc<Shared>, owned: Owned, drivers: &[Driver]) -> Result<(), Error> {
    let host = Arc::clone(&shared.host);
    let hashes: Vec<String> = drivers
        .iter()
        .map(|driver| driver.engine_hash().to_owned())
        .collect();
    let found = blocking("sweeping", move || {
        let mut found = host.sweep(&owned);
        if let Err(error) = host.sweep_compiled(hashes) {
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
