//! A pod of another boot: nothing of it lives any more.
//!
//! Called by: recovery. Invariants: what had ended keeps its end, what its keeper has recorded counts, no end is made up
//! where that record cannot be read; everything can be repeated until the pod's record is saved, which comes last.
//! Not here: pods of this boot.

use std::path::Path;
use std::sync::Arc;

use coracle_runtime::keeper::read_exit;

use super::super::clock;
use super::super::driver::{FoundContainer, Shared};
use super::super::error::Error;
use super::super::record::{ContainerRecord, PodRecord};
use super::super::state::{ContainerPhase, Ended, PodPhase, Reason};
use super::super::store::{Slot, Unreadable};
use crate::blocking::{io_error, runtime_error};

/// Another boot: nothing lives. What ran has ended as its keeper recorded, else unseen; what had ended keeps its end.
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
    // Last, so that a crash before it does all of this again.
    pod.phase = PodPhase::NotReady;
    pod.boot.clone_from(&shared.boot);
    slot.save(pod)
        .map_err(|error| io_error(format!("save the record of sandbox {}", pod.id), error))
}

/// Ends what ran, also where the disk only has that it was created, but how it ended. The inner error is why nobody can tell how it ended; it stays as it is then.
fn end(
    record: &mut ContainerRecord,
    slot: &mut Slot,
    exits: &Path,
) -> Result<Result<(), String>, Error> {
    if matches!(record.phase, ContainerPhase::Exited(_)) {
        return Ok(Ok(()));
    }
    let started_at = record.phase.run().map_or(0, |run| run.started_at);
    let ended = match read_exit(exits, &record.id) {
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
