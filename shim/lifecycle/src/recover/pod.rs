//! Recovers one pod: from its records, its keeper and its exit records to a driver.
//!
//! Called by: recovery at start, and [`crate::unrecovered`], which tries again. Each keeper has a deadline of its own.
//! Invariants: what was acknowledged is there afterwards with the right state; what was not is finished or
//! undone; a pod whose records cannot be used is left as it is.
//! Must not know: other pods, requests.

mod reboot;

use std::sync::Arc;
use std::time::Duration;

use coracle_control::process::Process;
use coracle_spec::id::PodId;

use self::reboot::after_reboot;
use crate::blocking::{blocking, pass, runtime_error};
use crate::disk::{FoundContainer, Known, OnDisk, ids_of, read_pod};
use crate::driver::{Connection, Driver, FoundKeeper, Resumed, Shared};
use crate::error::Error;
use crate::host_ids;
use crate::record::PodRecord;
use crate::registry::Claim;
use crate::state::PodPhase;
use crate::store::Slot;

/// How long a keeper may take to greet before the first request is served; its driver tries again later.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The result of recovering one pod.
pub enum Outcome {
    /// It continues.
    Driver(Box<Driver>),
    /// It never became ready, or its torn record was moved aside and none of its processes runs: its id and its
    /// containers'.
    Dead(Vec<String>),
    /// It cannot be recovered, for this reason.
    Unrecovered(Known, String),
}

/// Recovers one pod, or returns why that is impossible.
pub async fn recover_pod(shared: Arc<Shared>, id: PodId) -> Outcome {
    let (reader, of) = (Arc::clone(&shared), id.clone());
    let read = blocking("reading the records of a sandbox", move || {
        Ok(read_pod(reader.host.as_ref(), &of))
    });
    let (pod, slot, containers, dead) = match read.await {
        Ok(OnDisk::Absent(containers)) => return Outcome::Dead(ids_of(&id, &containers)),
        Ok(OnDisk::Unusable(known, why)) => return Outcome::Unrecovered(known, why),
        Ok(OnDisk::Found {
            pod,
            slot,
            containers,
            dead,
        }) => (pod, slot, containers, dead),
        Err(error) => return Outcome::Unrecovered(Known::default(), error.chain()),
    };
    let known = Known::of(&pod, &containers);
    match bring_back(&shared, *pod, slot, containers).await {
        Ok(Outcome::Driver(mut driver)) => {
            driver.set_dead(dead);
            Outcome::Driver(driver)
        }
        Ok(other) => other,
        Err(error) => Outcome::Unrecovered(known, error.chain()),
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
    thaw(shared, Known::of(&pod, &containers)).await;
    let keeper = find_keeper(shared, &pod).await?;
    let found = Resumed { containers, keeper };
    Ok(Outcome::Driver(Box::new(
        resume(shared, pod, slot, found).await,
    )))
}

/// A sandbox that was never acknowledged: its keeper has died with its daemon, and everything else is removed here.
async fn drop_unborn(shared: &Arc<Shared>, pod: &PodRecord) -> Result<Outcome, Error> {
    shared.host().tear_down_sandbox(pod, None, None).await?;
    let (host, id) = (Arc::clone(&shared.host), pod.id.clone());
    blocking("forgetting a sandbox", move || host.forget_pod(&id)).await?;
    tracing::info!(pod = %pod.id, "a half-made sandbox was undone");
    Ok(Outcome::Dead(vec![pod.id.as_str().to_owned()]))
}

async fn resume(shared: &Arc<Shared>, pod: PodRecord, slot: Slot, found: Resumed) -> Driver {
    let mail = Driver::mailbox();
    host_ids::claim(shared.host.as_ref(), &pod);
    claim_levels(shared, &pod, &found.containers);
    if let Claim::Held(other, _) = shared
        .registry
        .claim(&pod.config.name, &pod.id, mail.0.clone())
    {
        // Its own id: it was unrecovered before.
        if other != pod.id {
            tracing::error!(pod = %pod.id, other = %other, "two sandboxes have one name");
        }
        shared.registry.adopt(&pod.id, mail.0.clone());
    }
    let namespace = &pod.config.name.namespace;
    let share = shared.requests.take_over(namespace, pod.config.as_ref());
    Driver::new(Arc::clone(shared), pod, slot, share, mail)
        .resume(found)
        .await
}

/// Thaws what a daemon that died in the middle of a killing has frozen: the pod may be one that goes on.
async fn thaw(shared: &Arc<Shared>, of: Known) {
    let Some(record) = of.record else {
        return;
    };
    let parent = record.cgroup_parent.trim_end_matches('/').to_owned();
    let ids = ids_of(&record.id, &of.containers).into_iter();
    let cgroups: Vec<String> = ids.map(|id| format!("{parent}/{id}")).collect();
    let host = Arc::clone(&shared.host);
    let thawed = blocking("thawing a sandbox", move || {
        host.thaw_left(&cgroups);
        Ok(())
    });
    if let Err(error) = thawed.await {
        tracing::error!(pod = %record.id, error = error.chain(), "its cgroups may be frozen");
    }
}

/// Reserves the SELinux categories of a pod and its containers.
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

/// The keeper of a pod; `None` if it is dead or the pod needs none. Errors: unknown whether it lives.
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
    // A process that has ended may linger as a zombie until it is reaped.
    let Some(process) = opened.filter(Process::is_alive).map(Arc::new) else {
        return Ok(None);
    };
    let greeted = match pass("recover.adopt") {
        Ok(()) => shared.host().connect(&pod.id, ADOPTION_TIMEOUT).await,
        Err(error) => Err(error),
    };
    let connection = match greeted {
        Ok((keeper, greeting, events)) => Some(Connection {
            keeper,
            greeting,
            events,
        }),
        Err(error) => {
            tracing::error!(pod = %pod.id, error = error.chain(), "the keeper does not answer; its pod continues without it");
            None
        }
    };
    Ok(Some(FoundKeeper {
        process,
        connection,
    }))
}
