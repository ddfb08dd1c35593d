//! Reads the records of a pod from disk and says whether they can be used.
//!
//! Called by: recovery, and drivers that read a container's record again. Blocks.
//! Invariants: reading changes nothing, except that a torn record is moved aside once none of its processes runs; a
//! record that cannot be read is never taken for an absent one.
//! Must not know: what follows from a record.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_spec::id::{ContainerId, PodId};
use coracle_spec::{IdRange, failpoint};
use serde_json::Value;

use super::error::{Error, Kind};
use super::host::Host;
use super::record::{ContainerRecord, PodRecord};
use super::state::PodPhase;
use super::store::{self, Loaded, Slot, Torn, Unreadable};
use crate::blocking::{blocking, io_error};

/// A container on disk.
pub enum FoundContainer {
    /// Its record was read.
    Readable(Box<ContainerRecord>, Slot),
    /// Its record cannot be used.
    Unreadable(ContainerId, Unreadable),
}

/// What is known of a pod that could not be recovered.
#[derive(Default)]
pub struct Known {
    /// Its containers, as far as they could be listed.
    pub containers: Vec<ContainerId>,
    /// Its record, if it could be read.
    pub record: Option<Box<PodRecord>>,
    /// The contents of a record of another format.
    pub json: Option<Value>,
}

impl Known {
    /// A pod whose record could be read.
    pub fn of(record: &PodRecord, containers: &[FoundContainer]) -> Known {
        let id = |container: &FoundContainer| match container {
            FoundContainer::Readable(record, _) => record.id.clone(),
            FoundContainer::Unreadable(id, _) => id.clone(),
        };
        Known {
            containers: containers.iter().map(id).collect(),
            record: Some(Box::new(record.clone())),
            json: None,
        }
    }

    /// A pod whose record cannot be used; `json` if it is in another format.
    pub fn unreadable(containers: Vec<ContainerId>, json: Option<Value>) -> Known {
        Known {
            containers,
            record: None,
            json,
        }
    }

    /// A pod whose record is torn.
    pub fn torn(containers: Vec<ContainerId>) -> Known {
        Known::unreadable(containers, None)
    }

    /// Its host ids.
    pub fn range(&self) -> Option<IdRange> {
        if let Some(record) = &self.record {
            return Some(record.range);
        }
        serde_json::from_value(self.json.as_ref()?.get("range")?.clone()).ok()
    }

    /// The SELinux level of its containers.
    pub fn level(&self) -> Option<String> {
        if let Some(record) = &self.record {
            return record.selinux_level.clone();
        }
        let level = self.json.as_ref()?.get("selinux_level")?.as_str()?;
        Some(level.to_owned())
    }

    /// Parent of its cgroups.
    pub fn cgroup_parent(&self) -> Option<String> {
        if let Some(record) = &self.record {
            return Some(record.cgroup_parent.clone());
        }
        let parent = self.json.as_ref()?.get("cgroup_parent")?.as_str()?;
        Some(parent.to_owned())
    }

    /// Whether no client got its id.
    pub fn is_unborn(&self) -> bool {
        let starting = |record: &PodRecord| record.phase == PodPhase::Starting;
        self.record.as_deref().is_some_and(starting)
    }
}

/// What lies on disk of one pod.
pub enum OnDisk {
    /// No record, or a torn one that was moved aside; its containers.
    Absent(Vec<ContainerId>),
    /// A record that cannot be used now, and why.
    Unusable(Known, String),
    /// A record.
    Found {
        /// The record.
        pod: Box<PodRecord>,
        /// Where it lies.
        slot: Slot,
        /// Its containers that have a record.
        containers: Vec<FoundContainer>,
        /// Containers that have a directory and no record.
        dead: Vec<ContainerId>,
    },
}

/// Reads the records of a pod. Blocks.
pub fn read_pod(host: &dyn Host, id: &PodId) -> OnDisk {
    let directory = host.layout().pod_directory(id);
    let listed = failpoint::hit("recover.list-containers")
        .map_err(|error| {
            io_error(
                format!("list the containers in {}", directory.display()),
                error,
            )
        })
        .and_then(|()| ids_in::<ContainerId>(&host.layout().containers_directory(id)));
    let ids: Vec<ContainerId> = listed.as_deref().map(<[_]>::to_vec).unwrap_or_default();
    let loaded = match failpoint::hit("recover.read-pod") {
        Ok(()) => store::load::<PodRecord>(&directory, host.syncer()),
        Err(error) => Loaded::Unreadable(unread(&directory, &error)),
    };
    let (pod, slot) = match loaded {
        Loaded::Found(pod, slot) => (pod, slot),
        Loaded::Absent => return OnDisk::Absent(ids),
        Loaded::Unreadable(found) => {
            return OnDisk::Unusable(Known::unreadable(ids, found.json), found.why);
        }
        Loaded::Torn(torn) => return torn_pod(host, id, ids, listed, &torn),
    };
    if let Err(error) = listed {
        return OnDisk::Unusable(Known::of(&pod, &[]), error.chain());
    }
    let (mut containers, mut dead) = (Vec::new(), Vec::new());
    for container in ids {
        match load_container(host, &pod, &container) {
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

/// Moves a pod with a torn record aside, unless one of its processes may run.
fn torn_pod(
    host: &dyn Host,
    id: &PodId,
    containers: Vec<ContainerId>,
    listed: Result<Vec<ContainerId>, Error>,
    torn: &Torn,
) -> OnDisk {
    let all: HashSet<String> = ids_of(id, &containers).into_iter().collect();
    let directory = host.layout().pod_directory(id);
    match listed.and_then(|_| set_aside(host, &directory, &all, torn)) {
        Ok(()) => OnDisk::Absent(containers),
        Err(error) => {
            let why = format!("{}; {}", torn.why, error.chain());
            OnDisk::Unusable(Known::torn(containers), why)
        }
    }
}

/// Reads the record of one container; `None` when it has none, or a torn one that was moved aside.
/// Errors: the reading panicked.
pub async fn read_container(
    host: &Arc<dyn Host>,
    pod: &PodRecord,
    id: &ContainerId,
) -> Result<Option<FoundContainer>, Error> {
    let (host, pod, id) = (Arc::clone(host), pod.clone(), id.clone());
    blocking("reading the record of a container", move || {
        Ok(load_container(host.as_ref(), &pod, &id))
    })
    .await
}

fn load_container(host: &dyn Host, pod: &PodRecord, id: &ContainerId) -> Option<FoundContainer> {
    let directory = host.layout().container_directory(&pod.id, id);
    let loaded = match failpoint::hit("recover.read-container") {
        Ok(()) => store::load::<ContainerRecord>(&directory, host.syncer()),
        Err(error) => Loaded::Unreadable(unread(&directory, &error)),
    };
    match loaded {
        Loaded::Found(record, slot) => Some(FoundContainer::Readable(Box::new(record), slot)),
        Loaded::Unreadable(found) => Some(FoundContainer::Unreadable(id.clone(), found)),
        Loaded::Absent => None,
        Loaded::Torn(torn) => {
            let ids = [id.as_str().to_owned()].into();
            let error = set_aside(host, &directory, &ids, &torn).err()?;
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
    host: &dyn Host,
    directory: &Path,
    ids: &HashSet<String>,
    torn: &Torn,
) -> Result<(), Error> {
    if host.has_processes(ids) {
        let text = "it is not moved, because some of its processes still run";
        return Err(Error::new(Kind::WrongPhase, text));
    }
    if torn.is_unwritten {
        tracing::warn!(
            record = torn.why,
            "an object created in the last second before a power loss is removed"
        );
        return Ok(());
    }
    let moved = store::quarantine(directory, &host.layout().quarantines());
    let moved: PathBuf =
        moved.map_err(|error| io_error(format!("quarantine {}", directory.display()), error))?;
    tracing::error!(record = torn.why, quarantine = %moved.display(), "a torn record was moved aside");
    Ok(())
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

/// The ids of a pod and its containers, as text.
pub fn ids_of(pod: &PodId, containers: &[ContainerId]) -> Vec<String> {
    let containers = containers.iter().map(|id| id.as_str().to_owned());
    containers.chain([pod.as_str().to_owned()]).collect()
}
