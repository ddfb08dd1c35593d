//! Removes what nobody owns: the debris of daemons, keepers and nodes that died half-way.
//!
//! Called by: recovery, once, after all records were read and all keepers that live were found.
//! Invariants: only names of ours are touched (64 hexadecimal digits under our own directories, under parents that our
//! pods name, or interfaces with our prefix); every step is tried and every failure is reported, none stops the rest.
//! Not here: which record is right.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;

use coracle_runtime::id::PodId;
use coracle_runtime::network::{self, Attachment};

use super::{Host, pass, remove_tree, runtime_error};
use crate::lifecycle::{Error, Kind};

/// What is not to be swept.
#[derive(Debug, Default)]
pub struct Owned {
    /// Pods that have a record.
    pub pods: HashSet<String>,
    /// Pods whose keeper may live: their control sockets and pins stay.
    pub live: HashSet<String>,
    /// Ids whose cgroup may exist.
    pub leaves: HashSet<String>,
    /// Parents under which our cgroups lie.
    pub parents: BTreeSet<String>,
    /// Addresses in use.
    pub attachments: Vec<Attachment>,
    /// Ids known to be nobody's any more, with processes perhaps.
    pub dead: HashSet<String>,
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Found {
    /// What was removed, for the log.
    pub removed: Vec<String>,
    /// What could not be.
    pub errors: Vec<Error>,
}

impl Found {
    fn note(&mut self, what: String, result: Result<(), Error>) {
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) => self.errors.push(error),
        }
    }
}

impl Host {
    /// Removes what `owned` does not name. Blocks.
    pub fn sweep(&self, owned: &Owned) -> Found {
        let mut found = Found::default();
        if let Err(error) = pass("recover.sweep") {
            found.errors.push(error);
        }
        let mut dead = owned.dead.clone();
        dead.extend(self.orphans(owned));
        self.sweep_processes(&dead, &mut found);
        self.sweep_cgroups(owned, &mut found);
        self.sweep_directories(owned, &mut found);
        match self.parts.network.sweep(&owned.attachments) {
            Ok(interfaces) => found
                .removed
                .extend(interfaces.into_iter().map(|name| format!("network {name}"))),
            Err(error) => found.errors.push(Error::because(
                Kind::Io,
                "sweep addresses and interfaces",
                error,
            )),
        }
        self.parts.network.resume(&owned.live);
        found
    }

    /// Drops compiled code that neither this daemon's engine nor one of `hashes` can run. Blocks.
    pub fn sweep_compiled(&self, mut hashes: Vec<String>) -> Result<(), Error> {
        hashes.push(self.own_engine().hash);
        self.parts
            .compiler
            .sweep(&hashes)
            .map_err(|error| runtime_error("sweep compiled code", error))
    }

    /// Ids that have left a trace on disk but no record, with their containers.
    fn orphans(&self, owned: &Owned) -> HashSet<String> {
        let mut ids = HashSet::new();
        for directory in [self.run_directory(), self.pins_directory()] {
            ids.extend(
                ids_in(&directory)
                    .into_iter()
                    .filter(|id| !owned.live.contains(id)),
            );
        }
        for id in ids_in(&self.pods_directory()) {
            if owned.pods.contains(&id) {
                continue;
            }
            ids.extend(ids_in(&self.pods_directory().join(&id).join("containers")));
            ids.insert(id);
        }
        ids
    }

    /// Kills what runs in a cgroup named after one of `dead`, wherever that lies.
    fn sweep_processes(&self, dead: &HashSet<String>, found: &mut Found) {
        if dead.is_empty() {
            return;
        }
        for (path, pids) in cgroups_of_processes(dead) {
            found.note(
                format!("cgroup {path} with processes {pids:?}"),
                self.remove_cgroup(&path),
            );
        }
    }

    fn sweep_cgroups(&self, owned: &Owned, found: &mut Found) {
        for parent in &owned.parents {
            let Ok(cgroup) = self.parts.cgroups.open(parent) else {
                continue;
            };
            let files = cgroup.procs_files();
            let directories = files.iter().filter_map(|file| file.parent());
            let leaves: BTreeSet<String> = directories.flat_map(ids_in).collect();
            for leaf in leaves.difference(&owned.leaves.iter().cloned().collect()) {
                let path = format!("{}/{leaf}", parent.trim_end_matches('/'));
                found.note(format!("cgroup {path}"), self.remove_cgroup(&path));
            }
        }
    }

    fn sweep_directories(&self, owned: &Owned, found: &mut Found) {
        for id in ids_in(&self.pins_directory()) {
            // What plugins are still to let go of is unpinned once they have.
            if owned.live.contains(&id) || self.parts.network.cni().is_owed(&id) {
                continue;
            }
            let unpinned = network::unpin(&self.pins_directory().join(&id));
            let unpinned = unpinned
                .map_err(|error| Error::because(Kind::Io, format!("unpin namespace {id}"), error));
            found.note(format!("network namespace {id}"), unpinned);
        }
        for id in ids_in(&self.run_directory()) {
            if !owned.live.contains(&id) {
                found.note(
                    format!("control socket {id}"),
                    remove_tree(&self.run_directory().join(&id)),
                );
            }
        }
        for id in ids_in(&self.pods_directory()) {
            if !owned.pods.contains(&id) {
                found.note(
                    format!("directory of sandbox {id}"),
                    self.discard_tree(&self.pods_directory().join(&id)),
                );
            }
        }
    }
}

/// Entries of a directory that are ids; none when it is not there.
fn ids_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    // Pod and container ids have the same shape.
    names.filter(|name| name.parse::<PodId>().is_ok()).collect()
}

/// The cgroups whose last part is one of `leaves` and that hold processes.
fn cgroups_of_processes(leaves: &HashSet<String>) -> BTreeMap<String, BTreeSet<i32>> {
    let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let text: io::Result<String> = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
        // A process that ended meanwhile is no matter.
        for path in text
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
        {
            if path
                .rsplit('/')
                .next()
                .is_some_and(|leaf| leaves.contains(leaf))
            {
                found.entry(path.to_owned()).or_default().insert(pid);
            }
        }
    }
    found
}
