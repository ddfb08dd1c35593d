//! What lies on disk of a pod, and whether it can be used.
//!
//! Called by: recovery, and drivers that read a container's record again. Blocks.
//! Invariants: nothing that is read is changed, but a torn record of which nothing runs is moved aside; what cannot be
//! read is told apart from what is not there.
//! Not here: what follows from a record.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_spec::failpoint;
use coracle_spec::id::{ContainerId, PodId};

use super::super::driver::{FoundContainer, Shared};
use super::super::error::{Error, Kind};
use super::super::kept::Known;
use super::super::record::{ContainerRecord, PodRecord};
use super::super::store::{self, Loaded, Slot, Torn, Unreadable};
use super::{ids_in, ids_of};
use crate::blocking::{blocking, io_error};

/// What lies on disk of one pod.
pub(super) enum OnDisk {
    Absent(Vec<ContainerId>),
    Kept(Known, String),
    Found {
        pod: Box<PodRecord>,
        slot: Slot,
        containers: Vec<FoundContainer>,
        /// Containers that have a directory and no record.
        dead: Vec<ContainerId>,
    },
}

/// Reads the records of a pod. Blocks.
pub(super) fn read_pod(shared: &Shared, id: &PodId) -> OnDisk {
    let directory = shared.host.layout().pod_directory(id);
    let listed = failpoint::hit("recover.list-containers")
        .map_err(|error| {
            io_error(
                format!("list the containers in {}", directory.display()),
                error,
            )
        })
        .and_then(|()| ids_in::<ContainerId>(&shared.host.layout().containers_directory(id)));
    let ids: Vec<ContainerId> = listed.as_deref().map(<[_]>::to_vec).unwrap_or_default();
    let loaded = match failpoint::hit("recover.read-pod") {
        Ok(()) => store::load::<PodRecord>(&directory, shared.host.syncer()),
        Err(error) => Loaded::Unreadable(unread(&directory, &error)),
    };
    let (pod, slot) = match loaded {
        Loaded::Found(pod, slot) => (pod, slot),
        Loaded::Absent => return OnDisk::Absent(ids),
        Loaded::Unreadable(found) => {
            return OnDisk::Kept(Known::unreadable(ids, found.json), found.why);
        }
        Loaded::Torn(torn) => return torn_pod(shared, id, ids, listed, &torn),
    };
    if let Err(error) = listed {
        return OnDisk::Kept(Known::of(&pod, &[]), error.chain());
    }
    let (mut containers, mut dead) = (Vec::new(), Vec::new());
    for container in ids {
        match load_container(shared, &pod, &container) {
            Some(found) => containers.push(found),
            None => dead.push(container),
        }
    }
    OnDisk::Found {
        pod: Box::new(pod),
        slot,
        containers,
        dead,
    }
}

/// A torn record of a pod is moved aside with everything, unless something of it may run.
fn torn_pod(
    shared: &Shared,
    id: &PodId,
    containers: Vec<ContainerId>,
    listed: Result<Vec<ContainerId>, Error>,
    torn: &Torn,
) -> OnDisk {
    let all: HashSet<String> = ids_of(id, &containers).into_iter().collect();
    let directory = shared.host.layout().pod_directory(id);
    match listed.and_then(|_| set_aside(shared, &directory, &all, torn)) {
        Ok(()) => OnDisk::Absent(containers),
        Err(error) => {
            let why = format!("{}; {}", torn.why, error.chain());
            OnDisk::Kept(Known::torn(containers), why)
        }
    }
}

/// Reads the record of one container; `None` when it has none, or a torn one that was moved aside.
/// Errors: the reading panicked.
pub async fn read_container(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    id: &ContainerId,
) -> Result<Option<FoundContainer>, Error> {
    let (shared, pod, id) = (Arc::clone(shared), pod.clone(), id.clone());
    blocking("reading the record of a container", move || {
        Ok(load_container(&shared, &pod, &id))
    })
    .await
}

fn load_container(shared: &Shared, pod: &PodRecord, id: &ContainerId) -> Option<FoundContainer> {
    let directory = shared.host.layout().container_directory(&pod.id, id);
    let loaded = match failpoint::hit("recover.read-container") {
        Ok(()) => store::load::<ContainerRecord>(&directory, shared.host.syncer()),
        Err(error) => Loaded::Unreadable(unread(&directory, &error)),
    };
    match loaded {
        Loaded::Found(record, slot) => Some(FoundContainer::Readable(Box::new(record), slot)),
        Loaded::Unreadable(found) => Some(FoundContainer::Unreadable(id.clone(), found)),
        Loaded::Absent => None,
        Loaded::Torn(torn) => {
            let ids = [id.as_str().to_owned()].into();
            let error = set_aside(shared, &directory, &ids, &torn).err()?;
            let why = format!("{}; {}", torn.why, error.chain());
            Some(FoundContainer::Unreadable(
                id.clone(),
                Unreadable { why, json: None },
            ))
        }
    }
}

fn unread(directory: &Path, error: &std::io::Error) -> Unreadable {
    Unreadable {
        why: format!("read the record in {}: {error}", directory.display()),
        json: None,
    }
}

/// Moves the directory of a torn record to quarantine; that of one that never was on the disk is left to the sweep.
/// Errors: something of it runs, or it cannot be moved.
fn set_aside(
    shared: &Shared,
    directory: &Path,
    ids: &HashSet<String>,
    torn: &Torn,
) -> Result<(), Error> {
    if shared.host.has_processes(ids) {
        let text = "it stays where it is, for its processes live";
        return Err(Error::new(Kind::WrongPhase, text));
    }
    if torn.is_unwritten {
        tracing::warn!(
            record = torn.why,
            "what was made in the last second before a power loss is removed"
        );
        return Ok(());
    }
    let moved = store::quarantine(directory, &shared.host.layout().quarantine());
    let moved: PathBuf =
        moved.map_err(|error| io_error(format!("quarantine {}", directory.display()), error))?;
    tracing::error!(record = torn.why, quarantine = %moved.display(), "a torn record was moved aside");
    Ok(())
}
