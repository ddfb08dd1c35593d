//! Recovers a pod of an earlier boot, of which no process lives.
//!
//! Called by: recovery. Invariants: a container that had ended keeps its exit; the exits that the keeper recorded
//! count; no exit is invented where a record cannot be read; everything can be repeated until the pod's record is
//! saved, which comes last. Must not know: pods of this boot.

use std::path::Path;
use std::sync::Arc;

use coracle_control::exits;

use crate::blocking::{io_error, runtime_error};
use crate::clock;
use crate::disk::FoundContainer;
use crate::driver::Shared;
use crate::error::Error;
use crate::record::{ContainerRecord, PodRecord};
use crate::state::{ContainerPhase, Ended, PodPhase, Reason};
use crate::store::{Slot, Unreadable};

/// Ends everything that ran: as the keeper recorded, else with an unknown exit. A container that had ended keeps its
/// exit.
pub(super) async fn after_reboot(
    shared: &Arc<Shared>,
    pod: &mut PodRecord,
    slot: &mut Slot,
    containers: &mut [FoundContainer],
) -> Result<(), Error> {
    if pod.phase.live().is_some() {
        shared.host().tear_down_sandbox(pod, None, None).await?;
    }
    let exits = shared.host.layout().exits_directory(&pod.id);
    for container in containers.iter_mut() {
        if let FoundContainer::Readable(record, slot) = container
            && let Err(why) = end(record, slot, &exits)?
        {
            let (id, json) = (record.id.clone(), serde_json::to_value(&**record).ok());
            *container = FoundContainer::Unreadable(id, Unreadable { why, json });
        }
    }
    // Saved last, so that a crash before it repeats everything.
    pod.phase = PodPhase::NotReady;
    pod.boot.clone_from(&shared.boot);
    slot.save(pod)
        .map_err(|error| io_error(format!("save the record of sandbox {}", pod.id), error))
}

/// Ends a container that ran, even if its record still says created. The inner error is the reason why its exit is
/// unknown; its record then stays as it is.
fn end(
    record: &mut ContainerRecord,
    slot: &mut Slot,
    exits: &Path,
) -> Result<Result<(), String>, Error> {
    if matches!(record.phase, ContainerPhase::Exited(_)) {
        return Ok(Ok(()));
    }
    let started_at = record.phase.run().map_or(0, |run| run.started_at);
    let ended = match exits::read(exits, &record.id) {
        Ok(Some(exit)) => Ended::judge(started_at, &exit, 0, record.phase.stop_stage()),
        Ok(None) if record.phase.is_live() => lost_in_reboot(started_at),
        Ok(None) => return Ok(Ok(())),
        Err(error) => {
            let what = format!("learn how container {} ended", record.id);
            return Ok(Err(runtime_error(what, error).chain()));
        }
    };
    record.phase = ContainerPhase::Exited(ended);
    let what = || format!("save the record of container {}", record.id);
    slot.save(record).map_err(|error| io_error(what(), error))?;
    Ok(Ok(()))
}

fn lost_in_reboot(started_at: i64) -> Ended {
    Ended {
        started_at,
        finished_at: clock::wall(),
        code: 255,
        reason: Reason::Unknown,
        message: "the node restarted".to_owned(),
    }
}
