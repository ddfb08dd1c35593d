//! Removes what nobody owns: the debris of daemons, keepers and nodes that died half-way.
//!
//! Called by: recovery, once, after all records were read and all keepers that live were found.
//! Invariants: only what carries a mark of ours is touched: ids that have a directory under our own root or run
//! directory, which is made before anything else of a pod and goes last, and addresses that a lease of ours names. A
//! cgroup, a namespace or an interface with any other name is another daemon's, whatever parent, directory or prefix it
//! is found under. Nothing of a pod whose records cannot be used is touched. Every step is tried and every failure is
//! reported, none stops the rest.
//! Not here: which record is right.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;

use coracle_lifecycle::{Error, Kind, Owned, Swept};
use coracle_network as network;
use coracle_spec::id::PodId;

use super::{Host, pass, remove_tree, runtime_error};

/// Notes what became of one thing.
fn note(found: &mut Swept, what: String, result: Result<(), Error>) {
    match result {
        Ok(()) => found.removed.push(what),
        Err(error) => found.errors.push(error),
    }
}

impl Host {
    /// Removes what `owned` does not name. Blocks.
    pub fn sweep(&self, owned: &Owned) -> Swept {
        let mut found = Swept::default();
        if let Err(error) = pass("recover.sweep") {
            found.errors.push(error);
        }
        let mut dead = owned.dead.clone();
        dead.extend(self.orphans(owned));
        self.sweep_processes(&dead, &mut found);
        self.sweep_cgroups(owned, &dead, &mut found);
        self.sweep_directories(owned, &mut found);
        match self.parts.network.sweep(&owned.attachments, &owned.kept) {
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

    /// Ids that have left a trace in our own directories but no record, with their containers.
    fn orphans(&self, owned: &Owned) -> HashSet<String> {
        let mut ids: HashSet<String> = ids_in(&self.run_directory())
            .into_iter()
            .filter(|id| !owned.live.contains(id))
            .collect();
        for id in ids_in(&self.layout.pods_directory()) {
            if owned.pods.contains(&id) {
                continue;
            }
            ids.extend(ids_in(
                &self.layout.pods_directory().join(&id).join("containers"),
            ));
            ids.insert(id);
        }
        ids
    }

    /// Kills what runs in a cgroup named after one of `dead`, wherever that lies.
    fn sweep_processes(&self, dead: &HashSet<String>, found: &mut Swept) {
        if dead.is_empty() {
            return;
        }
        for (path, pids) in cgroups_of_processes(dead) {
            note(
                found,
                format!("cgroup {path} with processes {pids:?}"),
                self.remove_cgroup(&path),
            );
        }
    }

    /// Removes the cgroups named after `dead` that hold no process, under the parents that pods name.
    fn sweep_cgroups(&self, owned: &Owned, dead: &HashSet<String>, found: &mut Swept) {
        for (parent, leaf) in owned
            .parents
            .iter()
            .flat_map(|parent| dead.iter().map(move |leaf| (parent, leaf)))
        {
            let path = format!("{}/{leaf}", parent.trim_end_matches('/'));
            let opened = self.parts.cgroups.open(&path);
            if opened.is_ok_and(|cgroup| cgroup.exists()) {
                note(found, format!("cgroup {path}"), self.remove_cgroup(&path));
            }
        }
    }

    fn sweep_directories(&self, owned: &Owned, found: &mut Swept) {
        // Pins in a directory of the operator's choice may be another daemon's.
        let are_all_ours = self.pins_directory().starts_with(&self.config.run);
        for id in ids_in(&self.pins_directory()) {
            let is_ours = are_all_ours || self.layout.pods_directory().join(&id).exists();
            if !is_ours || owned.kept.contains(&id) {
                continue;
            }
            // What plugins are still to let go of is unpinned once they have.
            if owned.live.contains(&id) || self.parts.network.cni().is_owed(&id) {
                continue;
            }
            let unpinned = network::unpin(&self.pins_directory().join(&id));
            let unpinned = unpinned
                .map_err(|error| Error::because(Kind::Io, format!("unpin namespace {id}"), error));
            note(found, format!("network namespace {id}"), unpinned);
        }
        for id in ids_in(&self.run_directory()) {
            if !owned.live.contains(&id) {
                note(
                    found,
                    format!("control socket {id}"),
                    remove_tree(&self.run_directory().join(&id)),
                );
            }
        }
        for directory in &owned.debris {
            let removed = self.discard_tree(directory);
            note(found, format!("directory {}", directory.display()), removed);
        }
        for id in ids_in(&self.layout.pods_directory()) {
            if !owned.pods.contains(&id) {
                note(
                    found,
                    format!("directory of sandbox {id}"),
                    self.discard_tree(&self.layout.pods_directory().join(&id)),
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
pub(super) fn cgroups_of_processes(leaves: &HashSet<String>) -> BTreeMap<String, BTreeSet<i32>> {
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
